"""A checkpoint's file in, its tensors by name out: small ones as arrays, large ones as places in the file.

The library safetensors does not tell those places, which ONNX Runtime reads large tensors from.
Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffasr.errors import ModelError

_KINDS = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I64": np.int64}
_LONGEST_HEADER = 100_000_000  # bytes, as in https://github.com/huggingface/safetensors


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its file."""

    kind: str
    """Of its numbers, as the format names it."""
    shape: tuple[int, ...]
    start: int
    size: int
    """Bytes."""

    @property
    def numbers(self) -> np.dtype[Any]:
        """Of its numbers; raises ModelError for a kind that can't be read here."""
        if self.kind not in _KINDS:
            raise ModelError(f"numbers of kind {self.kind} can't be read here: try precision='float32'")
        return np.dtype(_KINDS[self.kind])


class Weights:
    """The tensors of one file in the format of safetensors, none of which is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for what is no such file, or half of one."""
        self.path = path.resolve()  # a hub's snapshot is made of links, and who asks later may stand elsewhere
        self._places = _places(self.path)

    @property
    def strange(self) -> str:
        """A kind of numbers in it that can't be read here; an empty text where there is none."""
        return next((place.kind for place in self._places.values() if place.kind not in _KINDS), "")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self, end: str) -> list[str]:
        """Those that end so."""
        return [name for name in self._places if name.endswith(end)]

    def place(self, name: str) -> Place:
        """Raises ModelError for a name that is not there."""
        if name not in self._places:
            raise ModelError(f"{self.path} has no {name}: fetch the model again")
        return self._places[name]

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a tensor, as it is stored."""
        place = self.place(name)
        count = place.size // place.numbers.itemsize
        return np.fromfile(self.path, place.numbers, count, offset=place.start).reshape(place.shape)

    def view(self, name: str) -> NDArray[Any]:
        """The same without a copy: what is used of it is read from the file, and may be forgotten again."""
        place = self.place(name)
        return np.memmap(self.path, place.numbers, mode="r", offset=place.start, shape=place.shape)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A copy in float32."""
        value: NDArray[np.float32] = self.read(name).astype(np.float32)
        if f"{name}.scale" in self:
            value *= self.floats(f"{name}.scale").reshape(-1, *[1] * (value.ndim - 1))
        return value


def _places(path: Path) -> dict[str, Place]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, _LONGEST_HEADER)))
        found = {name: _place(entry, 8 + size) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}; fetch it again") from error
    if max((place.start + place.size for place in found.values()), default=0) > path.stat().st_size:
        raise ModelError(f"{path} is not a whole safetensors file: it ends too early; fetch it again")
    for name, place in found.items():
        if place.kind in _KINDS and math.prod(place.shape) * place.numbers.itemsize != place.size:
            raise ModelError(f"{path} is not a whole safetensors file: {name} is of another size; fetch it again")
    return found


def _place(entry: Mapping[str, Any], start: int) -> Place:
    first, behind = entry["data_offsets"]
    return Place(entry["dtype"], tuple(entry["shape"]), start + first, behind - first)
