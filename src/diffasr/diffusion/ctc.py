"""What CTC knows of a clip: a first text, where each token was heard, and how much room the text needs.

Source: Graves et al., ICML 2006, section 3.1 (best-path decoding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
import torch
from torch import Tensor

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


def best_paths(logits: Tensor, slots: Tensor, *, blank: int) -> list[Path]:
    """Greedy labels of (B, N, C) logits, ``slots`` (B,) of them real; repeats merged, blanks dropped."""
    scores, labels = logits.max(dim=2)  # (B, N)
    scores = (scores - logits.logsumexp(dim=2)).float().cpu()  # all that follows is for each row by itself
    labels, slots = labels.cpu(), slots.cpu()
    previous = torch.cat((torch.full_like(labels[:, :1], blank), labels[:, :-1]), dim=1)
    real = torch.arange(labels.shape[1], device=labels.device) < slots[:, None]
    heard = (labels != blank) & (labels != previous) & real
    paths = []
    for row in range(len(labels)):
        places = heard[row].nonzero()[:, 0]
        total = float(scores[row, : int(slots[row])].sum())
        paths.append(Path(labels[row, places].tolist(), places.tolist(), total))
    return paths


def heard(
    logits: Tensor, slots: Tensor, *, blank: int, joined: Callable[[Sequence[int]], tuple[list[int], list[int]]]
) -> list[Path]:
    """Best paths in the tokens of the canvas. ``joined``: labels to tokens, and the label that each begins in."""
    return [in_tokens(best, joined) for best in best_paths(logits, slots, blank=blank)]


def in_tokens(path: Path, joined: Callable[[Sequence[int]], tuple[list[int], list[int]]]) -> Path:
    """A path of labels in the tokens of the canvas; ``joined`` as in ``heard``."""
    tokens, begins = joined(path.tokens)
    return replace(path, tokens=tokens, slots=[path.slots[b] for b in begins])


def canvas_length(tokens: int, *, slack: int = 4, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest bucket that holds ``tokens``, an eighth more, ``slack`` and an end token; the largest at most."""
    need = tokens + tokens // 8 + slack + 1
    return next((b for b in buckets if b >= need), buckets[-1])


def seed_canvas(paths: Sequence[Path], lengths: Tensor, *, end: int) -> Tensor:
    """CTC's text as a canvas (B, L), the rest of it end tokens; L is the largest of ``lengths`` (B,)."""
    canvas = torch.full((len(paths), int(lengths.max())), end)
    for row, path in enumerate(paths):
        room = path.tokens[: int(lengths[row])]
        canvas[row, : len(room)] = torch.tensor(room, dtype=canvas.dtype)
    return canvas


def hint_slots(paths: Sequence[Path], size: int) -> Tensor:
    """The audio token for each canvas place, (B, size): that of CTC's token of the same number, -1 past the last."""
    hints = torch.full((len(paths), size), -1)
    for row, path in enumerate(paths):
        room = path.slots[:size]
        hints[row, : len(room)] = torch.tensor(room, dtype=hints.dtype)
    return hints


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


def blurred(logits: Tensor, *, most: float, generator: torch.Generator) -> Tensor:
    """CTC logits (B, N, C) with Gumbel noise, each row's amount uniform up to ``most``: 1 samples the posterior.

    On its own training data CTC is better than it will ever be again, and a denoiser that trusts it there fails later:
    so its confusions are brought out.
    """
    noise = _gumbel(logits, generator)
    amount = most * torch.rand(len(logits), generator=generator, device=logits.device)
    return logits + amount[:, None, None] * noise


def sampled(logits: Tensor, *, generator: torch.Generator) -> Tensor:
    """CTC logits (B, N, C) whose best path is a draw from the distribution over paths that ``logits`` stand for."""
    return logits + _gumbel(logits, generator)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(1e-9, 1 - 1e-7)
    return -(-uniform.log()).log()
