"""Folders survive a round trip, what does not fit is said, and nothing here touches the network."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, random_model, tiny_tokenizer, tiny_whisper
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffasr.errors import ModelError, OptionError
from diffasr.model import checkpoint
from diffasr.model.checkpoint import FILES, find, from_whisper, load, quantise, save, start_rows
from diffasr.model.config import ModelConfig, ProjectorConfig
from diffasr.model.loaded import Model
from diffasr.train.letters import build as build_letters

ROWS = [[i] for i in range(VOCABULARY)]


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    save(tmp_path / "tiny", model)
    return tmp_path / "tiny"


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_model_comes_back_within_its_precision(model: Model, tmp_path: Path, precision: Any) -> None:
    save(tmp_path, model, precision=precision)
    again = load(tmp_path)
    assert again.config == model.config
    assert again.tokenizer.encode("the cat") == model.tokenizer.encode("the cat")
    assert torch.equal(again.network.prefixes, model.network.prefixes)
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        if precision == "float32":
            assert torch.equal(after[name], value)
        elif precision == "float16" or value.ndim < 2:
            assert torch.equal(after[name], value.half().float())
        else:
            step = value.flatten(1).abs().amax(1) / 127
            wrong = (after[name] - value).flatten(1).abs().amax(1)
            assert (wrong <= 0.501 * step + 1e-7).all(), name
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(FILES), "no half-written file stays"


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_model_of_letters_is_saved_with_the_model_where_there_is_one(
    model: Model, tmp_path: Path, precision: Any
) -> None:
    letters = build_letters({"en": ["the cat"], "de": ["die katze"]}, order=3, least=1)
    save(tmp_path, replace(model, letters=letters), precision=precision)
    again = load(tmp_path)
    assert again.letters is not None
    assert all(np.array_equal(a, b) for a, b in zip(again.letters.arrays, letters.arrays, strict=True))
    assert again.letters.language("de").text("katze") == letters.language("de").text("katze")
    assert again.network.state_dict().keys() == model.network.state_dict().keys()
    save(tmp_path, model, precision=precision)
    assert load(tmp_path).letters is None


def test_a_part_of_a_model_of_letters_is_refused(model: Model, tmp_path: Path) -> None:
    save(tmp_path, replace(model, letters=build_letters({"en": ["the cat"]}, order=2)))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "letters.marks"}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks letters\.marks"):
        load(tmp_path)


def test_settings_of_a_language_are_kept_in_the_config_and_were_none_before_there_were_any(model: Model) -> None:
    settings = {"hi": {"caution": 0.8}, "zh": {"letter_weight": 0, "letter_bonus": 1.5}}
    careful = replace(model.config, decoding=settings)
    assert ModelConfig.from_json(careful.to_json()) == careful
    fields = json.loads(careful.to_json())
    assert fields.pop("decoding") == settings
    assert ModelConfig.from_json(json.dumps(fields)) == model.config
    for wrong in (0.8, [0.8], {"hi": 0.8}, {"hi": {"steps": 4}}):
        with pytest.raises(ModelError, match=r"config\.json: decoding is"):
            ModelConfig.from_json(json.dumps(fields | {"decoding": wrong}))
    for number in ("much", -0.1, True, float("inf"), float("nan")):
        with pytest.raises(ModelError, match=r"config\.json: decoding holds"):
            ModelConfig.from_json(json.dumps(fields | {"decoding": {"hi": {"caution": number}}}))


def test_saving_replaces_what_was_there(folder: Path) -> None:
    other = random_model(seed=9)
    save(folder, other)
    loaded = load(folder).network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in other.network.state_dict().items())


def test_a_save_that_fails_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_self: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ModelConfig, "to_json", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, random_model(seed=9))
    assert {name: (folder / name).read_bytes() for name in before} == before


@given(st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3), st.floats(-12, 4))
def test_quantised_twice_is_quantised_once(row: list[float], size: float) -> None:
    weight = torch.tensor([row, [1.0, -0.5, 0.25]]) * 2**size
    codes, scale = quantise(weight)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float16
    back = codes.float() * scale.float()[:, None]
    assert ((back - weight).abs() <= 0.51 * scale.float()[:, None] + 4e-6).all()
    is_fine = scale >= torch.finfo(scale.dtype).smallest_normal  # others have too few digits
    assert torch.equal(quantise(back)[0][is_fine], codes[is_fine])


def test_int8_is_under_half_the_size(model: Model, tmp_path: Path) -> None:
    for precision in ("float32", "int8"):
        save(tmp_path / precision, model, precision=precision)  # type: ignore[arg-type]
    sizes = [(tmp_path / p / "model.safetensors").stat().st_size for p in ("float32", "int8")]
    assert sizes[1] < 0.5 * sizes[0]


def test_inference_is_float32_on_the_cpu_and_bfloat16_elsewhere_and_frozen(folder: Path) -> None:
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):
        network = load(folder, device=device).network
        assert {p.dtype for p in network.parameters()} == {dtype}
        assert not any(p.requires_grad for p in network.parameters())
        assert not network.training


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=file):
        load(folder)


def test_a_broken_weight_file_is_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        load(folder)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["vocabulary"] = 41
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"tokenizer has 40 tokens, config.json says 41"):
        load(folder)


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["stranger"] = weights.pop("projector.norm.weight")
    weights["decoder.layer_norm.bias"] = torch.zeros(5)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load(folder)
    lines = str(caught.value).splitlines()
    assert str(folder) in lines[0]
    assert lines[1:] == [
        "  missing projector.norm.weight (32,)",
        "  unknown stranger (32,)",
        "  decoder.layer_norm.bias is (5,), not (32,)",
    ]


def test_config_json_is_a_round_trip_and_its_faults_are_named(model: Model) -> None:
    text = model.config.to_json()
    assert ModelConfig.from_json(text) == model.config
    fields = json.loads(text)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ModelError, match=match):
            ModelConfig.from_json(json.dumps({k: v for k, v in (fields | changes).items() if v is not None}))

    refused("lacks 'decoder'", decoder=None)
    refused("backbone 'gpt'", backbone="gpt")
    refused("EncoderConfig.*ears", encoder=fields["encoder"] | {"ears": 2})
    refused("ProjectorConfig.*strides", projector={"hidden": 3})
    refused("EncoderConfig: mels is 'eighty'", encoder=fields["encoder"] | {"mels": "eighty"})
    refused("mode is 'cut'", encoder=fields["encoder"] | {"mode": "cut"})
    refused("layers is 0", decoder=fields["decoder"] | {"layers": 0})
    for text in ("{", "[1]"):
        with pytest.raises(ModelError, match="not JSON of a diffasr model"):
            ModelConfig.from_json(text)


@pytest.mark.parametrize("mels", [8, 128])
def test_a_whisper_folder_becomes_an_untrained_denoiser(tmp_path: Path, mels: int) -> None:
    whisper = tiny_whisper(mels=mels)
    whisper.save_pretrained(tmp_path / "whisper")
    bridge = ProjectorConfig(hidden=16, strides=2)
    made = from_whisper(tmp_path / "whisper", tiny_tokenizer(), ROWS, name="made", projector=bridge)
    assert made.config.encoder.mels == mels
    assert made.config.encoder.positions == 60
    assert made.config.projector == bridge
    assert not made.network.habits.any()
    ours, theirs = made.network.state_dict(), whisper.model.state_dict()
    own = {k for k in ours if k.startswith(("projector.", "decoder.conditioning.", "decoder.future", "habits"))}
    assert ours.keys() - own == theirs.keys()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
    for kind in ("weight", "bias"):
        assert torch.equal(ours[f"projector.out_norm.{kind}"], theirs[f"decoder.layer_norm.{kind}"])
    conditioning = made.network.decoder.conditioning
    assert all(w.abs().sum() == 0 for n, w in conditioning.named_parameters() if w.ndim == 2), "no effect yet"
    save(tmp_path / "made", made)
    again = load(tmp_path / "made")
    assert all(torch.equal(again.network.state_dict()[k], v) for k, v in ours.items())


def test_rows_of_new_tokens_are_means_and_differ(tmp_path: Path) -> None:
    table = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    rows = start_rows(table, [[3], [1, 2], [2, 1], [7]])
    assert torch.equal(rows[0], table[3])
    assert torch.equal(rows[3], table[7])
    assert not torch.allclose(rows[1], rows[2], atol=0.1), "the same parts in another order"
    many = start_rows(table, [[1, 2]] * 2000)
    torch.testing.assert_close(many.mean(0), table[[1, 2]].mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(many.std(0), table.std(0), rtol=0.1, atol=0)
    assert torch.equal(many, start_rows(table, [[1, 2]] * 2000)), "no outside dice"


def test_a_folder_that_is_no_whisper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        from_whisper(tmp_path, tiny_tokenizer(), ROWS, name="x")


def test_the_embedded_model_fits_its_tokenizer() -> None:
    folder = find("mini")
    config = ModelConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    assert config.decoder.vocabulary == checkpoint.Tokenizer.load(folder / "tokenizer.json").size


def test_a_device_that_is_not_there_is_an_option_error(folder: Path) -> None:
    with pytest.raises(OptionError, match="'abacus'"):
        load(folder, device="abacus")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision_is_what_was_asked_for(folder: Path, precision: Any, dtype: torch.dtype) -> None:
    assert {p.dtype for p in load(folder, precision=precision).network.parameters()} == {dtype}


@pytest.mark.parametrize("precision", ["int4", "int2"])
def test_a_precision_that_a_model_does_not_take_is_an_option_error(folder: Path, precision: Any) -> None:
    with pytest.raises(OptionError, match=f"precision '?{precision}"):
        load(folder, precision=precision)


@pytest.mark.parametrize("norms", [("norm",), ("out_norm",), ()])
def test_a_projector_has_the_norms_that_its_config_names(model: Model, norms: tuple[str, ...]) -> None:
    config = replace(model.config, projector=replace(model.config.projector, norms=norms))
    made = checkpoint.build_projector(config, 32)
    names = {name.split(".")[0] for name in made.state_dict()} & {"norm", "out_norm"}
    assert names == set(norms)
    frames = torch.randn(1, 16, 32)
    whole = checkpoint.build_projector(model.config, 32)
    whole.load_state_dict(made.state_dict(), strict=False)
    assert not torch.allclose(made(frames, torch.tensor([16])), whole(frames, torch.tensor([16])), atol=1e-3)


def test_fit_copies_nothing(model: Model) -> None:
    fresh = random_model(seed=4).network
    weights: dict[str, Tensor] = {k: v.clone() for k, v in model.network.state_dict().items()}
    checkpoint.fit(fresh, weights, source="here")
    assert all(v.data_ptr() == weights[k].data_ptr() for k, v in fresh.state_dict().items())
