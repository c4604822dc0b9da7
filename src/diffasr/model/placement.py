"""Where the layers of a gemma stand: on one card, on several, or in the host's memory until their turn comes.

A layer is one place in both stacks, whose weights are shared. What is no layer stands on the first card. Hidden states
go from card to card with the layers; keys and values stay where their layer made them. plan.py decides what stands
where, and ``place_`` does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffasr.errors import OptionError
from diffasr.model.loaded import Precision
from diffasr.model.precision import LAYER

HOST = torch.device("cpu")
_STACKS = ("model.encoder.language_model", "model.decoder")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a model is loaded to, and how its numbers are kept."""

    device: torch.device
    dtype: torch.dtype
    precision: Precision
    gpu_memory: float | None = None
    """GiB that a card may hold, for a gemma that is laid over the cards and the host; None: all of it on ``device``."""


def cards(device: torch.device) -> list[torch.device]:
    """All cards for ``cuda``, one for ``cuda:1``; raises OptionError for a device that has no memory of its own."""
    if device.type != "cuda":
        raise OptionError(f"gpu_memory lays a model over GPUs, and {device} is none: leave it out, or take device cuda")
    if device.index is not None:
        return [device]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def place_(network: nn.Module, first: torch.device, homes: Sequence[torch.device]) -> None:
    """Move a GemmaNetwork that has no gradients: each layer to its home, all else to ``first``.

    A layer at home on the host while ``first`` is a card is lent to ``first`` whenever it is called.
    """
    backbone: Any = network.get_submodule("backbone")
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, and kept alive: what both stacks share they share after
    for name, module in network.named_modules(remove_duplicate=False):
        found = LAYER.search(name) if name.startswith("backbone.") else None
        home = first if found is None else homes[int(found["number"])]
        for place, key, value in _held(module):
            if id(value) not in moved:
                moved[id(value)] = (value, _parameter_like(value, value.to(home)))
            place[key] = moved[id(value)][1]
    for stack in _STACKS:
        for layer, home in zip(backbone.get_submodule(f"{stack}.layers"), homes, strict=True):
            is_lent = home == HOST != first
            layer.register_forward_pre_hook(_Brought(first if is_lent else home), with_kwargs=True)
            if is_lent:
                loan = _Loan(layer, first)
                layer.register_forward_pre_hook(loan.fetch)
                layer.register_forward_hook(loan.give_back, always_call=True)
        backbone.get_submodule(f"{stack}.norm").register_forward_pre_hook(_Brought(first), with_kwargs=True)


class _Brought:
    """Brings what a module is called with to its device; a key/value cache stays as it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return self._moved(given), {name: self._moved(value) for name, value in named.items()}

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        return tuple(self._moved(part) for part in value) if isinstance(value, tuple) else value


class _Loan:
    """The weights of a layer, at home on the host, on a card for the time of a call."""

    def __init__(self, layer: nn.Module, card: torch.device) -> None:
        self.card = card
        self.held = [entry for module in layer.modules() for entry in _held(module)]

    def fetch(self, *_: object) -> None:
        for place, name, value in self.held:
            place[name] = lent(value, self.card)

    def give_back(self, *_: object) -> None:
        for place, name, value in self.held:
            place[name] = value
            scales = getattr(value, "quant_state", None)
            if scales is not None:  # bitsandbytes moves these in place
                scales.to(HOST)


def lent(value: Tensor, card: torch.device) -> Tensor:
    """A copy of ``value`` on ``card``."""
    return value.to(card)


def _held(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """A module's own parameters and buffers, each with the dictionary that holds it and its name there."""
    places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    return [(place, name, value) for place in places for name, value in place.items() if value is not None]


def _parameter_like(old: Tensor, new: Tensor) -> Tensor:
    """``new``, a parameter if ``old`` was one."""
    is_parameter = isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter)
    return nn.Parameter(new, requires_grad=False) if is_parameter else new
