"""Files in layouts that the reference may have come in, made from a known adapter: it is found again, or refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import RANK, SPEECH_WIDTH, adapter_model, write_sources
from torch import Tensor

from diffasr.cli import main
from diffasr.errors import ModelError
from diffasr.model import adapter, checkpoint, hub, reference
from diffasr.model.loaded import Model

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def made(sources: tuple[Path, Path]) -> Model:
    return adapter_model(sources)


@pytest.fixture
def weights(made: Model) -> Weights:
    return {name: value.clone() for name, value in adapter.adapter(made.network).items()}


def split(weights: Weights) -> tuple[Weights, Weights]:
    """LoRA under peft's names, and the projector under names of its own."""
    lora = {name.removeprefix("backbone."): value for name, value in weights.items() if "lora_" in name}
    bridge = {name.removeprefix("projector."): value for name, value in weights.items() if "lora_" not in name}
    return lora, bridge


def flat(weights: Weights) -> dict[str, Any]:
    lora, bridge = split(weights)
    return lora | {f"proj.{name}": value for name, value in bridge.items()}


def nested(weights: Weights) -> dict[str, Any]:
    lora, bridge = split(weights)
    return {"lora": lora, "projector": bridge, "step": 1200, "config": {"r": RANK, "lora_alpha": 7}}


def peft_whole(weights: Weights) -> dict[str, Any]:
    lora, bridge = split(weights)
    named = {f"base_model.model.{n}".replace(".weight", ".default.weight"): v for n, v in lora.items()}
    return {"state_dict": named | {f"module.audio.{n}": v for n, v in bridge.items()}}


def by_stack(weights: Weights) -> dict[str, Any]:
    """A dictionary a stack, the layers alone in it; convolutions as members of one sequence with the linear layer."""
    lora, bridge = split(weights)
    stacks: dict[str, Weights] = {"encoder_lora": {}, "decoder_lora": {}}
    for name, value in lora.items():
        stacks[f"{'encoder' if 'encoder' in name else 'decoder'}_lora"][name[name.index("layers.") :]] = value
    order = {"norm": 0, "convs.0": 1, "convs.1": 3, "convs.2": 5, "linear": 7, "out_norm": 8}
    renamed = {f"{order[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in bridge.items()}
    return stacks | {"net": renamed}


def in_bfloat16(weights: Weights) -> dict[str, Any]:
    return nested({name: value.bfloat16() for name, value in weights.items()})


def write(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "diffusion_asr_small.pt")
    return folder / "diffusion_asr_small.pt"


def converted(file: Path, sources: tuple[Path, Path], **options: Any) -> Any:
    return reference.convert(file, source=sources[0], whisper=sources[1], **options)


@pytest.mark.parametrize("layout", [flat, nested, peft_whole, by_stack, in_bfloat16], ids=lambda f: f.__name__)
def test_each_layout_is_found_again(
    layout: Callable[[Weights], Any], weights: Weights, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    config, _, found = converted(write(layout(weights), tmp_path), sources)
    assert found.weights.keys() == weights.keys()
    for name, value in weights.items():
        expected = value.bfloat16().float() if layout is in_bfloat16 else value
        assert torch.equal(found.weights[name], expected), name
    assert (found.rank, found.projector.hidden, found.projector.strides) == (RANK, 24, 3)
    assert config.decoder.rank == RANK
    assert config.decoder.alpha == (7 if layout in (nested, in_bfloat16) else 2 * RANK)
    assert config.encoder.mode == "whole"
    assert len([line for line in found.table.splitlines() if " -> " in line]) == len(weights)


def test_a_given_alpha_wins(weights: Weights, sources: tuple[Path, Path], tmp_path: Path) -> None:
    assert converted(write(nested(weights), tmp_path), sources, alpha=3)[0].decoder.alpha == 3


def test_a_projector_without_norms_has_none(weights: Weights, sources: tuple[Path, Path], tmp_path: Path) -> None:
    bare = {name: value for name, value in weights.items() if "norm" not in name}
    config, _, found = converted(write(flat(bare), tmp_path), sources)
    assert config.projector.norms == ()
    assert found.weights.keys() == bare.keys()


def test_a_converted_file_says_what_the_adapter_says(
    made: Model, weights: Weights, sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(by_stack(weights), tmp_path)
    call = [
        "import",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--gemma",
        str(sources[0]),
        "--whisper",
        str(sources[1]),
    ]
    assert main([*call, "--alpha", str(2 * RANK)]) == 0
    shown = capsys.readouterr()
    assert f"{len(weights)} tensors" in shown.err
    assert "encoder_lora.layers.0.self_attn.q_proj.lora_A.weight (2, 64) torch.float32 -> backbone.model" in shown.out
    again = checkpoint.load(tmp_path / "out")
    ours, theirs = made.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert again.config == replace(made.config, name=reference.NAME)
    assert main(call) == 0
    assert "took 4, see --alpha" in capsys.readouterr().err
    assert main([*call, "--alpha", "0"]) == 2
    assert "--alpha must be 1 or more, got 0" in capsys.readouterr().err


def without(weights: Weights, mark: str) -> dict[str, Any]:
    return flat({name: value for name, value in weights.items() if mark not in name})


def renamed(weights: Weights, before: str, after: str) -> dict[str, Any]:
    return {name.replace(before, after): value for name, value in flat(weights).items()}


FAULTS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "a missing matrix": (lambda w: without(w, "1.self_attn.q_proj.lora_A"), r"missing backbone.*1\.self_attn\.q_proj"),
    "no convolution": (lambda w: without(w, "convs"), "0 linear layers|widths"),
    "a broken chain": (lambda w: without(w, "convs.0"), "no convolution of kernel 3 takes 32 channels"),
    "no linear layer": (lambda w: without(w, "linear"), "0 linear layers of 24 inputs"),
    "no LoRA": (lambda w: without(w, "lora_"), "there is no LoRA"),
    "a stranger": (lambda w: flat(w) | {"head.weight": torch.zeros(3, 5)}, r"head\.weight \(3, 5\): is no layer"),
    "a second linear": (
        lambda w: flat(w) | {"other.weight": torch.zeros(64, 24), "other.bias": torch.zeros(64)},
        "2 linear layers of 24 inputs",
    ),
    "a second norm": (
        lambda w: flat(w) | {"other.weight": torch.ones(64), "other.bias": torch.zeros(64)},
        r"other\.weight \(64,\): has no place, or more than one",
    ),
    "another adapter": (
        lambda w: flat(w) | {n.replace(".weight", ".second.weight"): v for n, v in split(w)[0].items()},
        "and 1 more mean backbone",
    ),
    "one stack for both": (lambda w: renamed(w, "model.encoder.language_model.", ""), "peft's name .* of one stack"),
    "no order": (lambda w: renamed(w, "convs.1", "middle"), "which of .* comes first can't be told"),
    "two ranks": (
        lambda w: {n: torch.cat((v, v)) if "layers.0.self_attn.k_proj.lora_A" in n else v for n, v in flat(w).items()},
        r"LoRA has ranks \[2, 4\]",
    ),
    "a wider kernel": (
        lambda w: {n: v.repeat(1, 1, 2) if n == "proj.convs.1.weight" else v for n, v in flat(w).items()},
        "no convolution of kernel 3",
    ),
    "DoRA": (
        lambda w: flat(w) | {"decoder.layers.0.self_attn.q_proj.lora_magnitude_vector.weight": torch.ones(64)},
        "lora_magnitude_vector.*is not peft's name",
    ),
    "another width": (
        lambda w: {n: v.repeat(1, 2) if "layers.0.self_attn.k_proj.lora_A" in n else v for n, v in flat(w).items()},
        r"is \(2, 128\), not \(2, 64\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_ambiguous_is_refused_with_a_table(
    fault: str, weights: Weights, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    layout, told = FAULTS[fault]
    with pytest.raises(ModelError, match=f"(?s).*{told}") as caught:
        converted(write(layout(weights), tmp_path), sources)
    assert len(str(caught.value).splitlines()) > 1, "a table"


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no"):
        reference.read(tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("not a file of torch")
    with pytest.raises(ModelError, match="not a PyTorch file"):
        reference.read(tmp_path / "text.pt")
    with pytest.raises(ModelError, match="holds a list"):
        reference.read(write([1, 2], tmp_path))


class Trap:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_no_code_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="not a PyTorch file of tensors alone"):
        reference.read(write({"a": Trap()}, tmp_path))
    assert "code ran" not in capsys.readouterr().out


def test_its_repository_loads_by_name(
    made: Model, weights: Weights, sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    places = {
        "interfaze-ai/diffusion-gemma-asr-small": write(nested(weights), tmp_path).parent,
        "google/diffusiongemma-26B-A4B-it": sources[0],
        "openai/whisper-small": sources[1],
    }
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(places[name]))
    monkeypatch.setattr("diffasr.model.gemma.GEMMA", "none")  # so that the sizes come from the tiny config
    assert tmp_path.joinpath(hub.REFERENCE_FILE).is_file()
    loaded = checkpoint.load("interfaze-ai/diffusion-gemma-asr-small")
    assert loaded.config.decoder.alpha == 7  # type: ignore[union-attr]
    ours, theirs = made.network.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert loaded.network.encoder.conv1.weight.shape[0] == SPEECH_WIDTH
