"""From CTC's text to a better one: CTC and the denoiser write a canvas together a few times, and each draft is handed
out as it comes.

A row is done when a step has changed nothing, the first step excepted; nobody is asked about it again. How good a text
is shows only when the next step has read it. Where it turns out clearly worse than one before, it is gone on with all
the same, but the draft is the better one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from diffasr.places import Place, Reader, unread

LEEWAY = 5.0
"""Nats: a text that was just read may be worth so much less than the best one, or that is the draft."""


@dataclass(frozen=True)
class Writer:
    """What writes one row anew in each step."""

    rewritten: Callable[[Sequence[int], Sequence[Place]], list[int]]
    """The text after a step from the one before, (U,), and what is said of it, (U + 1,)."""
    worth: Callable[[Sequence[int], Sequence[Place]], float] | None = None
    """How good the text before is, in nats, from the same two. Without it the last text is always the draft."""


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


@dataclass(kw_only=True)
class _Row:
    """One text, and the best that it has been. A text that fills its canvas is cut, and is not compared."""

    text: list[int]
    size: int
    """Tokens that it has room for, the end included."""
    is_finished: bool = False
    best: list[int] = field(default_factory=list)
    worth: float = -inf
    """Of ``best``."""
    sure: list[float] = field(default_factory=list)
    """(size,) log-probabilities of ``best`` and the ends behind it."""

    def drawn(self, writer: Writer, places: Sequence[Place], end: int) -> tuple[list[int], list[float]]:
        """Write the text anew. Returns the draft, and the log-probability of each place of its canvas."""
        seen, nothing = self.text, unread(end)
        if len(seen) == self.size:  # a full canvas has no place behind its text
            places = [*places[: self.size], nothing]

        def scores(text: Sequence[int]) -> list[float]:
            whole = [*text, *[end] * (self.size - len(text))]
            return [(places[n] if n < len(places) else nothing).of(token) for n, token in enumerate(whole)]

        self.text = writer.rewritten(seen, places)[: self.size]
        if writer.worth is not None and len(seen) < self.size:
            now, is_cut = writer.worth(seen, places), len(self.text) == self.size
            if now > self.worth:
                self.best, self.worth, self.sure = seen, now, scores(seen)
            if now < self.worth - LEEWAY and not is_cut:  # who sees a cut text gives it a larger canvas
                return self.best, self.sure
        return self.text, scores(self.text)


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
    rows = [_Row(text=list(text[:size]), size=size) for text, size in zip(texts, sizes, strict=True)]
    width = max(sizes, default=0)
    tokens = np.full((len(rows), width), end, np.int64)
    scores = np.zeros((len(rows), width), np.float32)
    for step in range(1, steps + 1):
        going = [number for number, row in enumerate(rows) if not row.is_finished]
        for number, places in zip(going, reader.read([(n, rows[n].text) for n in going]), strict=True):
            row, before = rows[number], rows[number].text
            draft, sure = row.drawn(writers[number], places, end)
            row.is_finished = step > 1 and row.text == before
            tokens[number] = [*draft, *[end] * (width - len(draft))]
            scores[number, : row.size] = sure
        finished = np.array([row.is_finished for row in rows], np.bool_)
        yield Draft(step=step, tokens=tokens.copy(), log_probability=scores.copy(), finished=finished)
        if finished.all():
            return
