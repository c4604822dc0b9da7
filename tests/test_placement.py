"""A gemma laid over cards and host says what it says on one device, and load does what the plan prints.

No card is at hand: ``cpu:1`` and ``cpu:2`` stand for two. Torch's fake tensors hold them apart and refuse to mix them,
real ones compute on the CPU all the same.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import SPEECH_WIDTH, adapter_model, write_sources
from test_gemma import tiny_network
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import diffasr
from diffasr import loading
from diffasr.cli import main
from diffasr.errors import OptionError
from diffasr.model import adapter, checkpoint, placement, plan
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.model.placement import HOST, Target, cards, place_
from diffasr.transcribe import Transcriber

SILENCE = torch.zeros(16_000).numpy()
FIRST, SECOND = torch.device("cpu", 1), torch.device("cpu", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter")
    checkpoint.save(place / "a", adapter_model(write_sources(place)))
    return place / "a"


def logits_of(model: Model) -> Tensor:
    dice = torch.Generator().manual_seed(1)
    speech = Speech(frames=torch.randn(2, 80, SPEECH_WIDTH, generator=dice), lengths=torch.tensor([80, 48]))
    canvas, lengths = torch.randint(40, (2, 16), generator=dice), torch.tensor([16, 9])
    with torch.inference_mode():
        cache = model.network.prefill(speech, torch.tensor([0, 1]))
        first = model.network.denoise(canvas, cache, lengths=lengths)
        chosen = model.network.select(cache, torch.tensor([1, 0]))
        return model.network.denoise(canvas, chosen, lengths=lengths, previous=first)


def faked(network: Any, mode: FakeTensorMode) -> None:
    """Put fake tensors in place of a network's own, shared where those are shared."""
    made: dict[int, Tensor] = {}
    for module in network.modules():
        for place, name, value in placement._held(module):
            place[name] = made.setdefault(id(value), mode.from_tensor(value))


def test_no_step_mixes_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network(lora=True).requires_grad_(False)
    network.backbone.set_experts_implementation("batched_mm")  # the one whose shapes don't depend on the numbers
    mode = FakeTensorMode()
    faked(network, mode)
    made = torch.tensor

    def tensor(data: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        found = made(data, dtype=dtype)  # which would forget the number of a CPU
        return found if device is None else torch.zeros(found.shape, dtype=found.dtype, device=device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(Tensor, "all", lambda *_, **__: False)  # fake numbers answer no questions
    with mode, torch.no_grad():
        place_(network, FIRST, [FIRST, SECOND, HOST])
        homes = {(name.split(".layers.")[1][0], p.device) for name, p in network.backbone.named_parameters() if
                 ".layers." in name}  # fmt: skip
        assert homes == {("0", FIRST), ("1", SECOND), ("2", HOST)}
        rows = torch.zeros(3, dtype=torch.long, device=FIRST)
        speech = Speech(frames=torch.randn(2, 40, 16, device=FIRST), lengths=torch.full((2,), 40, device=FIRST))
        cache = network.select(network.prefill(speech, None), rows)
        assert [layer.keys.device for layer in cache.memory.keys_values.layers] == [FIRST, SECOND, FIRST]
        canvas, lengths = torch.zeros(3, 8, dtype=torch.long, device=FIRST), torch.full((3,), 8, device=FIRST)
        first = network.denoise(canvas, cache, lengths=lengths)
        assert network.denoise(canvas, cache, lengths=lengths, previous=first).device == FIRST
        assert network.ar_logits(canvas, cache).device == FIRST
        network.backbone.model.decoder.norm._forward_pre_hooks.clear()
        network.backbone.model.decoder.layers[2]._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="found at least two devices"):  # so it would have been seen
            network.denoise(canvas, cache, lengths=lengths)


def lay(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """``count`` cards, all of whose memory may be used."""
    for module in (adapter, checkpoint, plan):
        monkeypatch.setattr(module, "cards", lambda _: [FIRST, SECOND][:count])
    monkeypatch.setattr(plan, "RESERVE", 0.0)


def room_for(folder: Path, precision: Any, layers: float) -> float:
    """GiB of a card that holds all but layers, and so many of them."""
    row = planned(folder, precision)
    return (row.weights.fixed + row.beside + layers * max(row.weights.layers)) / plan.GIB


def planned(folder: Path, precision: Any) -> plan.Row:
    rows = plan.plan(adapter.sketch(loading.read_config(folder)), plan.Work())
    return next(row for row in rows if row.precision == precision)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    ("count", "layers", "expected"), [(1, 2.1, [FIRST, HOST, HOST]), (2, 1.2, [FIRST, SECOND, SECOND])]
)
def test_load_lays_layers_where_the_plan_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: Any, count: int,
    layers: float, expected: list[torch.device],
) -> None:  # fmt: skip
    lay(monkeypatch, count)
    memory = room_for(folder, precision, layers)
    whole = checkpoint.load(folder, precision=precision)
    moves: list[int] = []

    def lent(value: Tensor, card: torch.device) -> Tensor:
        assert card == FIRST
        moves.append(id(value))
        return value.to(card)

    monkeypatch.setattr(placement, "lent", lent)
    placed = diffasr.load(folder, precision=precision, gpu_memory=memory).model
    assert plan.homes(checkpoint.load(folder).network, target(precision, memory)) == expected
    for model in (placed, whole):
        model.network.train()  # when it evaluates on a CPU, bitsandbytes packs what it was lent in another way
    torch.testing.assert_close(logits_of(placed), logits_of(whole), rtol=1e-5, atol=1e-5)
    layer = placed.network.backbone.model.decoder.layers[2]
    assert bool(moves) == (expected[2] == HOST), "a layer on the host is lent, one on a card is not"
    assert not moves or {id(v) for v in layer.parameters()} < set(moves)
    assert main(["info", str(folder), "--plan", "--gpu-memory", str(memory), "--gpus", str(count)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(precision))
    assert ("with 2 layers on the host" if count == 1 else "layers 0-0 | 1-2") in line


def target(precision: Any, gpu_memory: float | None) -> Target:
    return Target(device=FIRST, dtype=torch.float32, precision=precision, gpu_memory=gpu_memory)


def test_what_is_lent_is_what_is_computed_with_and_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoint.load(folder)
    before = logits_of(model)
    place_(model.network, FIRST, [FIRST, FIRST, HOST])
    layer: Any = model.network.backbone.model.decoder.layers[2]
    own = [id(value) for value in layer.parameters()]
    torch.testing.assert_close(logits_of(model), before)
    monkeypatch.setattr(placement, "lent", lambda value, card: torch.zeros_like(value))
    assert not torch.allclose(logits_of(model), before)

    def fail(value: Tensor, card: torch.device) -> Tensor:
        return value[..., :1]

    monkeypatch.setattr(placement, "lent", fail)
    with pytest.raises(RuntimeError):
        logits_of(model)
    assert [id(value) for value in layer.parameters()] == own, "after a call that failed as well"
    shared = model.network.backbone.model.encoder.language_model.layers[2].mlp.up_proj.weight
    assert layer.mlp.up_proj.weight is shared, "both stacks still share"


def test_a_loaded_layout_can_be_saved(folder: Path, tmp_path: Path) -> None:
    model = checkpoint.load(folder)
    place_(model.network, FIRST, [FIRST, HOST, HOST])
    checkpoint.save(tmp_path / "again", model)
    old, new = (checkpoint.read_weights(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert old.keys() == new.keys() and all(torch.equal(new[name], value) for name, value in old.items())


def test_what_can_not_be_laid_out_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="cpu is none: leave it out"):
        diffasr.load(folder, gpu_memory=24)
    assert cards(torch.device("cuda", 3)) == [torch.device("cuda", 3)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cards(torch.device("cuda")) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    lay(monkeypatch, 1)
    with pytest.raises(OptionError, match=r"mini.* whisper backbone: leave it out"):
        diffasr.load("mini", gpu_memory=24)
    with pytest.raises(OptionError, match="bfloat16, int8, int4, not with float32"):
        diffasr.load(folder, precision="float32", gpu_memory=24)
    with pytest.raises(OptionError, match=r"bfloat16 needs 0\.0 GiB.* take int8 or int4"):
        diffasr.load(folder, gpu_memory=room_for(folder, "bfloat16", 0.5))
    with pytest.raises(OptionError, match="more than 0 GiB"):
        diffasr.load(folder, gpu_memory=-1)


def test_a_plan_counts_the_windows_that_are_decoded_together(folder: Path) -> None:
    from diffasr.cli import parse
    from diffasr.windows import Window

    asr = diffasr.load(folder)
    windows: list[Any] = [
        Window(start=0, end=16_000, samples=SILENCE, speech=(), speech_probability=1.0) for _ in range(9)
    ]
    sizes = [len(batch) for batch in asr._batches(range(9), windows)]
    assert sizes == [4, 4, 1], "30 s each, whatever is said in them"
    assert parse(["info"]).batch == plan.Work().rows == 4
    assert [len(b) for b in Transcriber(asr.model, batch_seconds=60)._batches(range(3), windows)] == [2, 1]
