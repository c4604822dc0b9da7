"""The losses, one number an example: diffusion, autoregressive, CTC, and how far from a teacher."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def diffusion_loss(logits: Tensor, clean: Tensor, lengths: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over all canvas places, clean and noisy alike, with no weight by noise level: (B,) nats.

    logits: (B, L, V). clean: (B, L). lengths: (B,) places that count. smoothing: share of the target that is spread
    over the whole vocabulary.
    """
    return _masked_mean(logits, clean, lengths, smoothing)


def ar_loss(logits: Tensor, tokens: Tensor, counts: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the next token: (B,) nats.

    logits: (B, U + 1, V), row u for token u. tokens: (B, U + 1), the text and its end. counts: (B,) tokens of each row,
    the end among them; or (B, U + 1) bool, which of them count.
    """
    return _masked_mean(logits, tokens, counts, smoothing)


def distil_loss(logits: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """How far from what a teacher says of each next token, Kullback-Leibler from the teacher: (B,) nats a token.

    logits, teacher: (B, U + 1, V) over the same tokens. lengths: (B,) places that count. arXiv:1503.02531 section 2,
    at temperature 1.
    """
    real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]  # (B, U + 1)
    wanted = teacher[real].float().log_softmax(-1)
    apart = F.kl_div(logits[real].float().log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
    total = torch.zeros(real.shape, dtype=apart.dtype, device=apart.device).masked_scatter(real, apart)
    return total.sum(1) / lengths.clamp_min(1)


def ctc_loss(logits: Tensor, slots: Tensor, tokens: Tensor, lengths: Tensor, *, blank: int) -> Tensor:
    """Connectionist temporal classification, nats a label: (B,). Rows with more labels than slots cost nothing.

    logits: (B, N, V). slots: (B,) real ones. tokens: (B, U), lengths (B,) of them labels.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (N, B, V)
    loss = F.ctc_loss(log_probs, tokens, slots, lengths, blank=blank, reduction="none", zero_infinity=True)
    return loss / lengths.clamp_min(1)


def candidate_labels(
    tokens: Tensor, *, blank: int, vocabulary: int, extra: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A small stand-in for the vocabulary: the labels of ``tokens`` (B, U) and ``extra`` others drawn at random.

    CTC over the whole vocabulary costs more than everything else in its training together. Returns labels (C,), the
    blank first; ``tokens`` as places in them (B, U); and what to add to their logits (C,): the drawn ones stand for
    all that were left out (sampled soft-max, arXiv:1412.2007 section 3).
    """
    needed = torch.cat((torch.tensor([blank]), tokens.flatten())).unique()
    needed = torch.cat((torch.tensor([blank]), needed[needed != blank]))
    is_needed = torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, needed, True)
    others = (~is_needed).nonzero()[:, 0]
    drawn = others[torch.randperm(len(others), generator=generator)[:extra]]
    places = torch.zeros(vocabulary, dtype=torch.long).scatter(0, needed, torch.arange(len(needed)))
    weight = torch.zeros(len(needed) + len(drawn))
    if len(drawn):
        weight[len(needed) :] = math.log(len(others) / len(drawn))
    return torch.cat((needed, drawn)), places[tokens], weight


def _masked_mean(logits: Tensor, targets: Tensor, counts: Tensor, smoothing: float) -> Tensor:
    real = counts if counts.ndim == 2 else torch.arange(targets.shape[1], device=targets.device) < counts[:, None]
    loss = F.cross_entropy(logits[real].float(), targets[real], reduction="none", label_smoothing=smoothing)
    total = torch.zeros(real.shape, dtype=loss.dtype, device=loss.device).masked_scatter(real, loss)  # (B, L)
    return total.sum(1) / real.sum(1).clamp_min(1)
