"""A guess at what the decoder would say next, at a third of its price: a draft model for the places behind a change.

A denoiser that sees no later place is right about the first place at which it changes a text, and has yet to read what
then stands behind it. The drafter tells in the meantime. It has layers like the decoder's last ones, which attend to
the keys and values that these have of the text before and of the speech; what it lacks of the layers below, it makes
of the hidden state that the token was chosen from (Li et al., arXiv:2401.15077; Du et al., arXiv:2402.02082). The next
step reads what was written by it, so that a wrong guess does not stay.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.model.config import LOUD
from diffasr.model.layers import Block, KeysValues
from diffasr.model.memory import Memory

if TYPE_CHECKING:
    from diffasr.model.whisper import WhisperDecoder

DEPTH = 2
"""Tokens that it learns to go on for by itself."""


class Drafter(nn.Module):
    """From the hidden state of a place and the token that was written there to the hidden state of the next place."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.before = nn.Linear(width, width)
        self.token = nn.Linear(width, width, bias=False)
        blocks = [Block(width, heads, hidden, hears=True) for _ in range(layers)]
        for block in blocks:  # what it hears are the decoder's own keys and values
            del block.encoder_attn.k_proj, block.encoder_attn.v_proj
        self.layers = nn.ModuleList(blocks)
        self.layer_norm = nn.LayerNorm(width)

    @torch.no_grad()
    def imitate_(self, decoder: "WhisperDecoder") -> None:
        """Start from the decoder's last layers."""
        self.before.weight.zero_()
        self.before.bias.zero_()
        nn.init.eye_(self.token.weight)
        for mine, theirs in zip(self.layers, list(decoder.layers)[-len(self.layers) :], strict=True):
            wanted = mine.state_dict().keys()
            mine.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in wanted})
        self.layer_norm.load_state_dict(decoder.layer_norm.state_dict())

    def entered(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (…, D) and embeddings (…, D), position code included, to what the first layer reads."""
        return self.before(hidden / LOUD) + self.token(tokens)

    def forward(self, hidden: Tensor, tokens: Tensor, past: "History", memory: Memory) -> tuple[Tensor, "History"]:
        """(B, U, D) each, see ``entered``, to (B, U, D), normed, and the past of a place that goes on from there."""
        x, (speech, mask) = self.entered(hidden, tokens), memory
        sight = torch.cat((*past.sights, torch.eye(x.shape[1], dtype=torch.bool, device=x.device)), dim=1)
        made = []
        for number, block in enumerate(cast("list[Block]", list(self.layers))):
            queries, own = block.self_attn.queries_keys_values(block.self_attn_layer_norm(x))
            keys, values = (torch.cat(part, dim=2) for part in zip(*(p[number] for p in past.parts), own, strict=True))
            x = x + block.self_attn.merged(F.scaled_dot_product_attention(queries, keys, values, sight))
            x = x + block.encoder_attn(block.encoder_attn_layer_norm(x), speech[number], mask)
            x = x + block.thought(x)
            made.append(own)
        return self.layer_norm(x), past.later(made)


class History:
    """What the places of a text attend to, each to what stands before it: parts of keys and values, a pair a layer."""

    def __init__(self, parts: Sequence[Sequence[KeysValues]], sights: Sequence[Tensor]) -> None:
        """sights: for each of ``parts`` which of its keys a place sees, (U, keys) bool."""
        self.parts, self.sights = parts, sights

    def later(self, made: Sequence[KeysValues]) -> "History":
        """Of all places but the first, one place on: each sees what the one before it saw, and what that one was."""
        size = len(self.sights[0]) - 1
        shorter = [(keys[:, :, :size], values[:, :, :size]) for keys, values in made]
        own = torch.eye(size, dtype=torch.bool, device=self.sights[0].device)
        return History([*self.parts, shorter], [*(sight[:size] for sight in self.sights), own])


def guesses(
    decoder: "WhisperDecoder", drafter: Drafter, tokens: Tensor, memory: Memory, before: int
) -> list[tuple[Tensor, Tensor]]:
    """What the drafter makes of a whole text at each place, and what it should: hidden states (B, U - n, D), twice, for
    n tokens by itself, from 1 up to DEPTH.

    tokens: (B, P + U) prefix and text; before: P. The decoder learns nothing by it.
    """
    with torch.no_grad():
        seen, kept, hidden = decoder.traced(decoder.embed_tokens(tokens), memory, len(drafter.layers))
        states = hidden[:, before - 1 :]  # (B, U + 1, D): that of place n says token n
        x = seen[:, before:]  # (B, U, D)
    size, total = x.shape[1], tokens.shape[1]
    places = torch.arange(total, device=x.device)
    past = History([kept], [places < before + torch.arange(size, device=x.device)[:, None]])  # (U, P + U)
    found, told = [], states[:, :-1]
    speech = [(keys.detach(), values.detach()) for keys, values in memory[0][-len(drafter.layers) :]], memory[1]
    for depth in range(min(DEPTH, size)):
        told, past = drafter(told, x[:, depth:], past, speech)
        found.append((told, states[:, depth + 1 :]))
        told = told[:, :-1]
    return found
