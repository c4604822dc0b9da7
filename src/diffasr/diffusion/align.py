"""Where in the audio each label of a known text was said: CTC's best path among those that spell the text.

Source: Graves et al., ICML 2006, section 4.1, with the largest term in place of the sum (Viterbi).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffasr.diffusion.ctc import log_softmax


@dataclass(frozen=True, kw_only=True)
class Span:
    """One label in the audio."""

    first: int
    """The audio token where it begins."""
    last: int
    """The last audio token that says it."""
    peak: int
    """The audio token where CTC is surest of it."""
    log_probability: float
    """Of the label there, in nats."""


def align(logits: NDArray[np.float32], labels: Sequence[int], *, blank: int) -> list[Span] | None:
    """The span of each label on the best path of (N, C) CTC logits; None where N slots can't hold the labels.

    Spans follow one another and never overlap.
    """
    scores = log_softmax(np.asarray(logits, np.float32))
    count, slots = len(labels), len(scores)
    repeats = sum(a == b for a, b in pairwise(labels))
    if not count or count + repeats > slots:
        return [] if not count else None
    states = np.full(2 * count + 1, blank)  # a blank, then each label with a blank behind it
    states[1::2] = labels
    emitted = scores[:, states].astype(np.float64)  # (N, 2U + 1)
    may_skip = np.zeros(len(states), dtype=bool)  # over a blank, from another label
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    best = np.full(len(states), -np.inf)
    best[:2] = emitted[0, :2]
    came = np.zeros((slots, len(states)), dtype=np.int64)  # how many states each step moved on
    for slot in range(1, slots):
        moves = np.full((3, len(states)), -np.inf)
        moves[0] = best
        moves[1, 1:] = best[:-1]
        moves[2, 2:] = np.where(may_skip[2:], best[:-2], -np.inf)
        came[slot] = moves.argmax(0)
        best = moves.max(0) + emitted[slot]
    state = len(states) - 1 if best[-1] >= best[-2] else len(states) - 2
    path = np.empty(slots, dtype=np.int64)
    for slot in range(slots - 1, -1, -1):
        path[slot] = state
        state -= came[slot, state]
    return [_span(path, emitted, 2 * number + 1) for number in range(count)]


def _span(path: np.ndarray, emitted: np.ndarray, state: int) -> Span:
    where = np.flatnonzero(path == state)
    peak = int(where[emitted[where, state].argmax()])
    sure = min(0.0, float(emitted[peak, state]))
    return Span(first=int(where[0]), last=int(where[-1]), peak=peak, log_probability=sure)
