"""What safetensors wrote is read back by name, number by number; what it did not write whole is refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_runtime import unseeing

from diffasr.errors import ModelError, OptionError
from diffasr.loading import load
from diffasr.model import checkpoint
from diffasr.model.stored import quantise
from diffasr.runtime.network import RuntimeNetwork
from diffasr.runtime.weights import Weights
from diffasr.train.letters import build

KINDS = {"F32": torch.float32, "F16": torch.float16, "I8": torch.int8, "I64": torch.int64}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "some.safetensors", metadata={"format": "pt"})
    return folder / "some.safetensors"


def by_hand(folder: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path = folder / "some.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_is_read_as_it_was_written(tmp_path: Path, kind: str) -> None:
    tensors = {str(n): (20 * random(*shape, seed=n)).to(KINDS[kind]) for n, shape in enumerate([(5, 3), (), (2, 3, 4)])}
    weights = Weights(written(tmp_path, **tensors))
    for name, value in tensors.items():
        place, read = weights.place(name), weights.read(name)
        assert (place.kind, place.shape, place.size) == (kind, tuple(value.shape), value.nbytes)
        assert read.dtype == place.numbers == value.numpy().dtype
        assert np.array_equal(read, value.numpy())
        assert weights.floats(name).dtype == np.float32
        assert np.array_equal(weights.floats(name), value.float().numpy())


def test_a_view_is_the_same_and_no_copy(tmp_path: Path) -> None:
    weights = Weights(written(tmp_path, table=random(6, 4)))
    view = weights.view("table")
    assert np.array_equal(view, weights.read("table"))
    assert isinstance(view, np.memmap)
    assert not view.flags.writeable
    first = weights.read("table")
    first[:] = 0
    assert weights.read("table").any(), "a copy is its reader's"


@pytest.mark.parametrize("shape", [(7, 12), (5, 4, 3)])
def test_floats_are_what_int8_stands_for(tmp_path: Path, shape: tuple[int, ...]) -> None:
    value = random(*shape)
    codes, scale = quantise(value)
    weights = Weights(written(tmp_path, layer=codes, **{"layer.scale": scale}))
    back = codes.float() * scale.float().view(-1, *[1] * (len(shape) - 1))
    assert np.array_equal(weights.floats("layer"), back.numpy())
    assert np.abs(weights.floats("layer") - value.numpy()).max() < 0.01 * float(value.abs().max())
    assert "layer" in weights
    assert "other" not in weights


def test_a_name_that_is_not_there_is_told(tmp_path: Path) -> None:
    weights = Weights(written(tmp_path, layer=random(2)))
    for asked in (weights.place, weights.read, weights.view, weights.floats):
        with pytest.raises(ModelError, match=r"some\.safetensors has no layer\.bias: fetch the model again"):
            asked("layer.bias")


@pytest.mark.parametrize("kept", [0, 5, 30, -1])
def test_half_a_file_is_told(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path, layer=random(20, 20))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"is not a whole safetensors file: .*; fetch it again"):
        Weights(path)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.safetensors is not a whole safetensors file: .*No such file"):
        Weights(tmp_path / "none.safetensors")


def entry(**changes: object) -> dict[str, object]:
    return {"layer": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def test_the_header_by_hand_is_right_but_for_what_is_changed(tmp_path: Path) -> None:
    assert Weights(by_hand(tmp_path, entry(), bytes(8))).read("layer").tolist() == [0, 0]


@pytest.mark.parametrize(
    "header",
    [[], 5, {"layer": 5}, {"layer": {"dtype": "F32", "shape": [2]}}, entry(data_offsets=[0]), entry(shape=[3])],
    ids=["a list", "a number", "no entry", "no offsets", "one offset", "another shape than size"],
)
def test_another_kind_of_file_is_told(tmp_path: Path, header: object) -> None:
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        Weights(by_hand(tmp_path, header, bytes(8)))


def test_a_text_where_a_file_should_be_is_told(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 111660944\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"is not a whole safetensors file: .*; fetch it again"):
        Weights(path)


def test_numbers_that_are_not_known_are_told_with_a_remedy(tmp_path: Path) -> None:
    weights = Weights(written(tmp_path, layer=random(4).bfloat16(), other=random(4)))
    assert weights.strange == "BF16"
    assert weights.read("other").shape == (4,)
    with pytest.raises(ModelError, match="numbers of kind BF16 can't be read here: try precision='float32'"):
        weights.read("layer")


def test_a_file_without_tensors_has_none(tmp_path: Path) -> None:
    assert "layer" not in Weights(by_hand(tmp_path, {"__metadata__": {"format": "pt"}}))


@pytest.mark.parametrize("name", ["encoder.layers.0.self_attn.k_proj.weight", "decoder.layers.1.fc1.weight",
                                  "projector.linear.weight", "decoder.embed_tokens.weight",
                                  "encoder.layer_norm.weight", "decoder.layers.0.fc1.bias", "habits"])  # fmt: skip
@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "of another shape"])
def test_a_weight_that_does_not_fit_is_told(tmp_path: Path, name: str, is_missing: bool) -> None:
    checkpoint.save(tmp_path, unseeing())
    weights = load_file(tmp_path / "model.safetensors")
    value = weights.pop(name)
    if not is_missing:
        weights[name] = value[:-1].clone()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=name):
        load(tmp_path)


def test_of_a_checkpoint_all_is_loaded_that_belongs_to_it(tmp_path: Path) -> None:
    model = unseeing()
    known = build({"en": ["the cat", "a cat"], "de": ["der hund"]}, order=3, least=1)
    for letters in (None, known):
        checkpoint.save(tmp_path, replace(model, letters=letters))
        found = load(tmp_path)
        assert found.config == model.config
        assert found.tokenizer.alphabet == model.tokenizer.alphabet
        assert (found.letters is None) == (letters is None)
    assert found.letters is not None
    for name, value in known.state().items():
        assert found.letters.state()[name].dtype == value.dtype
        assert np.array_equal(found.letters.state()[name], value)


def give_drafter(folder: Path, layers: int) -> None:
    """Make of a checkpoint what it was when there were drafters, small copies of the decoder's last layers."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields["decoder"]["draft"] = layers
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    names = [
        name for name in weights if layers and name.startswith("decoder.layers.1.") and ".encoder_attn.k" not in name
    ]
    copies = {name.replace("layers.1", "drafter.layers.0"): weights[name].clone() for name in names}
    more = {"decoder.drafter.before.weight": random(32, 32)} if layers else {}
    save_file(weights | copies | more, folder / "model.safetensors")


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("layers", [0, 1])
def test_what_a_checkpoint_has_of_a_drafter_is_ignored(tmp_path: Path, precision: Any, layers: int) -> None:
    new, old, again = (tmp_path / name for name in ("new", "old", "again"))
    for folder in (new, old):
        checkpoint.save(folder, unseeing(), precision=precision)
    give_drafter(old, layers)
    plain, found = (checkpoint.load(folder, precision="float32") for folder in (new, old))
    assert found.config == plain.config == load(old).config
    assert found.network.state_dict().keys() == plain.network.state_dict().keys()
    assert all(
        torch.equal(value, plain.network.state_dict()[name]) for name, value in found.network.state_dict().items()
    )
    said = []
    for network in (load(folder).network for folder in (new, old)):
        assert isinstance(network, RuntimeNetwork)
        cache = network.prefill(network.heard([np.ones((40, 32), np.float32)]), [0])
        said.append(network.denoise(torch.arange(8)[None], cache, lengths=torch.tensor([8])))
    assert torch.equal(*said)
    checkpoint.save(again, found)
    assert load_file(again / "model.safetensors").keys() == plain.network.state_dict().keys()
    assert "draft" not in json.loads((again / "config.json").read_text(encoding="utf-8"))["decoder"]


def test_a_tokenizer_of_another_size_is_told(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, unseeing())
    backend = tiny_tokenizer().backend
    backend.add_tokens(["another"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="the tokenizer has 41 tokens"):
        load(tmp_path)


@pytest.mark.parametrize("where", ["a snapshot of the hub", "elsewhere since"])
def test_a_checkpoint_is_read_through_links_and_from_anywhere(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = unseeing()
    checkpoint.save(tmp_path / "blobs", model)
    place = tmp_path / "näme with spaces"
    place.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / f"hash of {name}")
        (place / name).symlink_to(Path("..") / "blobs" / f"hash of {name}")
    monkeypatch.chdir(tmp_path)
    found = load(place if where.startswith("a snap") else place.name)
    monkeypatch.chdir("/")
    canvas = torch.arange(8)[None]
    cache = found.network.prefill(found.network.heard([np.ones((40, 32), np.float32)]), [0])
    assert found.network.denoise(canvas, cache, lengths=torch.tensor([8])).shape == (1, 8, 40)


@pytest.mark.parametrize("change", ["bfloat16", "one of three in float"])
def test_what_can_not_be_read_here_is_torchs(tmp_path: Path, change: str) -> None:
    checkpoint.save(tmp_path, unseeing(), precision="int8")
    weights = load_file(tmp_path / "model.safetensors")
    name = "decoder.layers.0.self_attn.k_proj.weight"
    scale = weights.pop(f"{name}.scale")
    whole = weights[name].float() * scale.float()[:, None]
    weights[name] = whole.bfloat16() if change == "bfloat16" else whole
    save_file(weights, tmp_path / "model.safetensors")
    assert load(tmp_path).module is not None
    with pytest.raises(OptionError, match="can't be run in int8"):
        load(tmp_path, precision="int8")
