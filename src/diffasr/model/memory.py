"""Keys and values of the speech, a pair a layer: those of some rows, several of which may share one."""

import torch
from torch import Tensor

from diffasr.model.layers import KeysValues

Memory = tuple[list[KeysValues], Tensor | None]
"""Keys and values of each layer, and which frames are real; None: all. Where a batch has more rows than these, so many
rows that follow each other share one."""


def chosen(memory: Memory, rows: Tensor, count: int) -> Memory:
    """What ``rows`` (R,) of a batch of ``count`` remember.

    Where each comes equally often, one behind the other, it is held once; where all come, nothing is copied.
    """
    owners = _owners(memory, count)[rows]
    held = len(memory[0][0][0])
    once, times = owners.unique_consecutive(return_counts=True)
    if len(once) and int(times.min()) == int(times.max()):
        owners = once
    if len(owners) == held and bool((owners == torch.arange(held, device=owners.device)).all()):
        return memory
    return _taken(memory, owners)


def silent(memory: Memory, rows: Tensor) -> Memory:
    """The same, where ``rows`` (B,) bool hear nothing at all: attention to it adds no more than its own bias."""
    speech, mask = _taken(memory, _owners(memory, len(rows)))
    if bool(rows.all()):  # one silent frame is as good as many
        speech, mask = [(keys[:, :, :1], values[:, :, :1]) for keys, values in speech], None
    hears = (~rows)[:, None, None, None]
    return [(keys * hears, values * hears) for keys, values in speech], mask


def _owners(memory: Memory, count: int) -> Tensor:
    """Whose keys and values each row of a batch of ``count`` reads: (count,)."""
    held = memory[0][0][0]
    return torch.arange(count, device=held.device) // max(1, count // len(held))


def _taken(memory: Memory, owners: Tensor) -> Memory:
    speech, mask = memory
    return [(keys[owners], values[owners]) for keys, values in speech], None if mask is None else mask[owners]
