"""What CTC knows of a clip: a first text, where each token was heard, and how much room the text needs.

Source: Graves et al., ICML 2006, section 3.1 (best-path decoding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BUCKETS = (16, 32, 48, 96, 192)
"""Canvas lengths. Cost is per canvas, so a canvas fits its text."""


@dataclass(frozen=True)
class Path:
    """The best path of one clip, collapsed."""

    tokens: list[int]
    slots: list[int]
    """The audio token at which each was heard first."""
    log_probability: float
    """Of the whole path, in nats."""
    favoured: tuple[str, ...] = ()
    """Words in it that the denoiser shall keep, as the vocabulary spells them."""
    favour: float = 0.0
    """Nats by which their tokens are raised."""


def best_path(logits: Floats, *, blank: int) -> Path:
    """Greedy labels of (N, C) logits; repeats merged, blanks dropped."""
    labels = logits.argmax(1)
    scores = log_softmax(logits).max(1)
    places = np.flatnonzero((labels != blank) & (labels != np.concatenate(([blank], labels[:-1]))))
    return Path(labels[places].tolist(), places.tolist(), float(scores.sum()))


def log_softmax(logits: Floats) -> Floats:
    """Over the last dimension, in float32."""
    below = logits - logits.max(-1, keepdims=True)
    found: Floats = below - np.log(np.exp(below).sum(-1, keepdims=True))
    return found


def in_tokens(path: Path, joined: Callable[[Sequence[int]], tuple[list[int], list[int]]]) -> Path:
    """A path of labels in the tokens of the canvas; ``joined``: labels to tokens, and the label that each begins in."""
    tokens, begins = joined(path.tokens)
    return replace(path, tokens=tokens, slots=[path.slots[b] for b in begins])


def canvas_length(tokens: int, *, slack: int = 4, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest bucket that holds ``tokens``, an eighth more, ``slack`` and an end token; the largest at most."""
    need = tokens + tokens // 8 + slack + 1
    return next((b for b in buckets if b >= need), buckets[-1])


def fitted(path: Path, tokens: Sequence[int], *, fill: Sequence[int]) -> tuple[list[int], list[int]]:
    """What CTC heard for each of ``tokens``, matched as text is compared: a token a place and its slot.

    Where CTC missed a token, the place gets that of ``fill`` and the slot -1; what it heard too much is left out. A
    draft with one token lost would otherwise be wrong at every place behind it.
    """
    heard, slots = list(fill[: len(tokens)]), [-1] * len(tokens)
    for _, a, b, c, d in SequenceMatcher(None, path.tokens, tokens, autojunk=False).get_opcodes():
        for source, place in zip(range(a, b), range(c, d), strict=False):  # the shorter side ends it
            heard[place], slots[place] = path.tokens[source], path.slots[source]
    return heard, slots


def consumed(written: str, heard: Sequence[str]) -> int:
    """How many pieces of ``heard`` are used up by ``written``: the split that costs the fewest edits of characters.

    Of several such splits the longest, so that a piece half said is not said again.
    """
    own, places = np.frombuffer(written.encode("utf-32-le"), np.uint32), np.arange(len(written) + 1)
    row = places.copy()  # edits from the first j characters written to the pieces so far
    best, cost = 0, row[-1]
    for count, piece in enumerate(heard, 1):
        for char in piece:
            changed = np.concatenate((row[:1] + 1, np.minimum(row[1:] + 1, row[:-1] + (own != ord(char)))))
            row = np.minimum.accumulate(changed - places) + places  # a character left out costs one, each
        if row[-1] <= cost:
            best, cost = count, row[-1]
    return best


def blurred(logits: Floats, *, most: float, generator: np.random.Generator) -> Floats:
    """CTC logits (N, C) with Gumbel noise, its amount uniform up to ``most``: 1 samples the posterior."""
    noise, amount = _gumbel(logits, generator), np.float32(most * generator.random())
    return logits + amount * noise


def sampled(logits: Floats, *, generator: np.random.Generator) -> Floats:
    """CTC logits (N, C) whose best path is a draw from the distribution over paths that ``logits`` stand for."""
    return logits + _gumbel(logits, generator)


def _gumbel(like: Floats, generator: np.random.Generator) -> Floats:
    return generator.gumbel(size=like.shape).astype(np.float32)
