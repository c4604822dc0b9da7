"""From CTC's text to a better one: CTC and the denoiser write a canvas together a few times, and each draft is handed
out as it comes.

A row is done when a step has changed nothing, the first step excepted; nobody is asked about it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffasr.places import Place, Reader, unread


class Writer(Protocol):
    """What writes one row anew in each step."""

    def __call__(self, tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
        """The text after a step from the one before, (U,), and what is said of it, (U + 1,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The canvases after one step."""

    step: int
    """From 1."""
    tokens: NDArray[np.int64]
    """(B, L) the texts, and ends behind them."""
    log_probability: NDArray[np.float32]
    """(B, L) of ``tokens``, in nats."""
    finished: NDArray[np.bool_]
    """(B,) rows that will not change any more."""


def write(
    reader: Reader,
    writers: Sequence[Writer],
    texts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    *,
    steps: int,
    end: int,
) -> Iterator[Draft]:
    """Let ``writers`` (B,) write ``texts`` anew, ``steps`` times at most, and yield a draft a step.

    sizes: (B,) tokens that each row has room for, the end included.
    """
    now = [list(text[:size]) for text, size in zip(texts, sizes, strict=True)]
    width = max(sizes, default=0)
    scores = np.zeros((len(now), width), np.float32)
    finished = np.zeros(len(now), np.bool_)
    nothing = unread(end)
    for step in range(1, steps + 1):
        going = np.flatnonzero(~finished).tolist()
        for row, places in zip(going, reader.read([(row, now[row]) for row in going]), strict=True):
            size, seen = sizes[row], now[row]
            if len(seen) == size:  # a full canvas has no place behind its text
                places = [*places[:size], nothing]  # noqa: PLW2901
            now[row] = writers[row](seen, places)[:size]
            whole = [*now[row], *[end] * (size - len(now[row]))]
            known = len(places) - 1 + (len(seen) < size)  # places that were read
            scores[row, :size] = [(places[n] if n < known else nothing).of(token) for n, token in enumerate(whole)]
            finished[row] = step > 1 and now[row] == seen
        tokens = np.full((len(now), width), end, np.int64)
        for row, text in enumerate(now):
            tokens[row, : len(text)] = text
        yield Draft(step=step, tokens=tokens, log_probability=scores.copy(), finished=finished.copy())
        if finished.all():
            return
