"""What teaches the drafter: to go on as the decoder itself would, over true texts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.loss import distil_loss
from diffasr.errors import RecipeError
from diffasr.model.config import LOUD
from diffasr.model.drafter import guesses
from diffasr.model.network import Cache, Network
from diffasr.model.whisper import WhisperNetwork
from diffasr.train.data import Batch

NEAR = 0.5
"""What the distance of hidden states counts beside that of what they say."""
LATER = 0.5
"""What a token counts that follows one that the drafter wrote by itself, beside one that the decoder wrote."""
LIKELY, CHANCE = 16, 2048
"""Tokens that are told apart: at each place the likeliest, and of all as many as this, drawn anew each time."""


def draft_loss(network: Network, batch: Batch, cache: Cache, noise: float, generator: torch.Generator) -> Tensor:
    """How far the drafter's guesses are from what the decoder says, Kullback-Leibler, nats a token, and their hidden
    states from its own: a number. Raises RecipeError where there is no drafter.

    noise: most of the share of a row's tokens, uniform from 0, that are others: both read the same, right or wrong.
    """
    drafter = network.decoder.drafter if isinstance(network, WhisperNetwork) else None
    if not isinstance(network, WhisperNetwork) or drafter is None:
        raise RecipeError("the loss draft is for a model with a drafter: give it one (recipes/mini/prepare.py drafter)")
    decoder, prefix = network.decoder, network.prefixes[cache.languages]  # (B, P)
    size = batch.tokens.shape[1]
    said = batch.tokens[torch.arange(size, device=batch.tokens.device) < batch.lengths[:, None]]  # (S,)
    read = torch.cat((prefix, _with_others(batch.tokens, said, noise, generator)), dim=1)
    pairs = guesses(decoder, drafter, read, cache.memory, prefix.shape[1])
    total = batch.tokens.new_zeros((), dtype=torch.float32)
    labels: Tensor | None = None
    for depth, (found, wanted) in enumerate(pairs):
        counts = (batch.lengths - depth).clamp_min(0)  # guesses in a row, that of the end included
        real = torch.arange(found.shape[1], device=found.device) < counts[:, None]
        told, meant = found[real][None], wanted[real][None]  # (1, R, D)
        with torch.no_grad():
            labels = _told_apart(decoder.unembed(meant), said, generator) if labels is None else labels
            theirs = decoder.unembed(meant, labels)
        apart = distil_loss(decoder.unembed(told, labels), theirs, real.sum()[None])
        near = F.smooth_l1_loss(told.float() / LOUD, meant.float() / LOUD)
        total = total + LATER**depth * (apart.mean() + NEAR * near)
    return total


def _with_others(tokens: Tensor, said: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """(B, U) tokens, of which each row has some, up to the share ``most``, replaced by any of those ``said`` (S,)."""
    share = most * torch.rand(len(tokens), 1, generator=generator, device=tokens.device)
    is_other = torch.rand(tokens.shape, generator=generator, device=tokens.device) < share
    chosen = torch.randint(len(said), tokens.shape, generator=generator, device=tokens.device)
    return torch.where(is_other, said[chosen], tokens)


def _told_apart(logits: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """(1, R, V) logits and the tokens that are said in a batch to the (C,) that count in it."""
    vocabulary = logits.shape[2]
    likely = logits.topk(min(LIKELY, vocabulary), dim=-1).indices
    chance = torch.randint(vocabulary, (CHANCE,), generator=generator, device=logits.device)
    return torch.cat((likely.flatten(), tokens, chance)).unique()
