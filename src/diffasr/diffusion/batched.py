"""The same as ``ctc`` for a batch of rows, in torch: for training, and for canvases that are read as a whole."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffasr.diffusion.ctc import Path, in_tokens


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


def blurred(logits: Tensor, *, most: float, generator: torch.Generator) -> Tensor:
    """CTC logits (B, N, C) with Gumbel noise, each row's amount uniform up to ``most``: 1 samples the posterior.

    On its own training data CTC is better than it will ever be again, and a denoiser that trusts it there fails later:
    so its confusions are brought out.
    """
    noise = _gumbel(logits, generator)
    amount = most * torch.rand(len(logits), generator=generator, device=logits.device)
    return logits + amount[:, None, None] * noise


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, device=like.device).clamp(1e-9, 1 - 1e-7)
    return -(-uniform.log()).log()
