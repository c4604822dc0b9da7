"""Laws of taking a checkpoint's tensors one by one: nothing is lost, changed or taken twice."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffasr.errors import ModelError
from diffasr.model.stored import Stored, floats, quantise


def written(path: Path, count: int) -> dict[str, Tensor]:
    """A file of ``count`` tensors of several kinds."""
    kinds = (torch.float32, torch.float16, torch.int8, torch.int64)
    tensors = {f"t{n}": (torch.arange(6).view(2, 3) + n).to(kinds[n % len(kinds)]) for n in range(count)}
    save_file(tensors, path)
    return tensors


def test_each_comes_as_it_was_written_in_any_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.safetensors"
    tensors = written(path, 100)
    monkeypatch.setattr("diffasr.model.stored._READ", 200)  # so that the file is opened anew on the way
    stored = Stored(path)
    assert set(stored.names) == tensors.keys()
    for name in sorted(tensors, key=lambda n: hash((n, "mixed up"))):
        assert stored.shape(name) == tensors[name].shape
        for found in (stored.read(name), stored.pop(name)):
            assert found.dtype == tensors[name].dtype
            assert torch.equal(found, tensors[name])
        assert stored.shape(name) is None
        assert stored.find(name) is None
    assert stored.names == []


def test_what_was_read_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    tensors = written(path, 1)
    stored = Stored(path)
    stored.read("t0").zero_()
    assert torch.equal(stored.pop("t0"), tensors["t0"])


def test_floats_are_read_back_and_nothing_is_left(tmp_path: Path) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rows, scale = quantise(weight)
    save_file({"a.weight": rows, "a.weight.scale": scale, "b": weight[0].half()}, tmp_path / "some.safetensors")
    stored = Stored(tmp_path / "some.safetensors")
    found = floats(stored)
    assert found.keys() == {"a.weight", "b"}
    assert torch.equal(found["a.weight"], rows.float() * scale.float()[:, None])
    assert torch.equal(found["b"], weight[0].half().float())
    assert stored.names == []


def test_half_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    written(path, 3)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        Stored(path)
