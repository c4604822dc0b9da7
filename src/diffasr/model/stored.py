"""The tensors of a checkpoint's file, read one by one as they are taken: there is no moment when all are held twice."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffasr.errors import ModelError

LARGEST = 127
_READ = 4_000_000  # bytes before the file is opened anew: while it is open it counts as memory as far as it was read


class Stored:
    """What of a file has not been taken yet."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for half a file."""
        self._path, self._read = path, 0
        self._file = self._opened()
        names = self._file.keys()
        self._shapes = {name: torch.Size(self._file.get_slice(name).get_shape()) for name in names}

    @property
    def names(self) -> list[str]:
        """Of all that is left."""
        return list(self._shapes)

    def shape(self, name: str) -> torch.Size | None:
        """Of one of them; None where there is none of that name."""
        return self._shapes.get(name)

    def read(self, name: str) -> Tensor:
        """A copy of what is stored under ``name``, as it is stored."""
        if self._read > _READ:
            del self._file
            self._file, self._read = self._opened(), 0
        found: Tensor = self._file.get_tensor(name)
        self._read += found.nbytes
        return found.clone()

    def pop(self, name: str) -> Tensor:
        """The same, and it is taken."""
        del self._shapes[name]
        return self.read(name)

    def find(self, name: str) -> Tensor | None:
        """The same of a tensor that need not be there."""
        return self.pop(name) if name in self._shapes else None

    def _opened(self) -> Any:
        try:
            return safe_open(self._path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self._path} is not a whole safetensors file: {error}; fetch it again") from error


def floats(stored: Stored) -> dict[str, Tensor]:
    """Stored tensors in float32, int8 ones read back. All are taken."""
    weights: dict[str, Tensor] = {}
    for name in [n for n in stored.names if not n.endswith(".scale")]:
        value, scale = stored.pop(name), stored.find(f"{name}.scale")
        if scale is not None:
            value = value.float().mul_(scale.float().view(-1, *[1] * (value.ndim - 1)))  # int8 before, so it is a copy
        weights[name] = value.float()
    return weights


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A (rows, …) matrix as int8 and one float16 scale a row; the largest value of a row becomes 127."""
    flat = weight.detach().float().flatten(1)
    scale = (flat.abs().amax(1) / LARGEST).clamp_min(1e-7).half()
    rounded = flat.div(scale.float()[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return rounded.view(weight.shape), scale
