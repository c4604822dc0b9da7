"""Words that may have been said in, where CTC hears something like them out.

A word's score over a stretch of audio tokens is what its best path through CTC's posterior loses against CTC's own best
path there: 0 where CTC spells the word, and less the more it has to be bent to.
Idea: arXiv:2406.07096 (abstract): spotted words take the place of what was recognised greedily in the same frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NEVER = -1e9  # nats


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A stretch of audio tokens that may say a word."""

    word: int
    """Its number."""
    first: int
    last: int
    loss: float
    """Nats that the word's path loses against CTC's best one, at least 0."""


def losses(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) CTC logits to what each label loses against the best one of its audio token: (N, C) nats, at most 0."""
    lost: NDArray[np.float32] = logits - logits.max(1, keepdims=True)
    return lost


def spot(lost: NDArray[np.float32], words: Sequence[Sequence[int]], *, blank: int, most: float) -> list[Spot]:
    """Where each word is heard best, the best of all first; stretches of one word do not overlap.

    lost: ``losses`` (N, C). words: the labels of each, one at least. most: nats a label that a word may lose.
    """
    if not words or not len(lost):
        return []
    counts = np.array([len(labels) for labels in words])
    states = np.full((len(words), 2 * int(counts.max()) - 1), blank)  # labels with a blank between each two
    for row, labels in enumerate(words):
        states[row, : 2 * len(labels) : 2] = labels
    may_skip = np.zeros(states.shape, dtype=bool)  # over a blank, from another label
    may_skip[:, 2::2] = states[:, 2::2] != states[:, :-2:2]
    ends = 2 * counts - 2
    rows = np.arange(len(words))
    score = np.full(states.shape, _NEVER, dtype=np.float64)
    begun = np.zeros(states.shape, dtype=np.int64)
    reached = np.full((len(lost), len(words)), _NEVER)
    starts = np.zeros((len(lost), len(words)), dtype=np.int64)
    for slot, emitted in enumerate(lost):
        ways = np.full((3, *states.shape), _NEVER)
        ways[0] = score
        ways[0, :, 0] = 0.0  # a word may begin anywhere
        ways[1, :, 1:] = score[:, :-1]
        ways[2, :, 2:] = np.where(may_skip[:, 2:], score[:, :-2], _NEVER)
        origin = np.stack((begun, _moved(begun, 1), _moved(begun, 2)))
        origin[0, :, 0] = slot
        chosen = ways.argmax(0)[None]
        begun = np.take_along_axis(origin, chosen, 0)[0]
        score = np.take_along_axis(ways, chosen, 0)[0] + emitted[states]
        reached[slot], starts[slot] = score[rows, ends], begun[rows, ends]
    return _best(reached, starts, -most * counts)


def _moved(begun: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    out = np.zeros_like(begun)
    out[:, by:] = begun[:, :-by]
    return out


def _best(reached: NDArray[np.float64], starts: NDArray[np.int64], least: NDArray[np.float64]) -> list[Spot]:
    """The ends (N, K) that lose no more than each word may, of overlapping ones of a word the best."""
    found: list[Spot] = []
    taken: dict[int, list[tuple[int, int]]] = {}
    slots, words = np.nonzero(reached >= least)
    order = sorted(zip(slots.tolist(), words.tolist(), strict=True), key=lambda at: (-reached[at], at))
    for slot, word in order:
        first = int(starts[slot, word])
        mine = taken.setdefault(word, [])
        if all(slot < a or first > b for a, b in mine):
            mine.append((first, slot))
            found.append(Spot(word=word, first=first, last=slot, loss=max(0.0, -float(reached[slot, word]))))
    return found
