"""Reading a canvas again of which only the end has changed.

Where a decoder does not see later places, what it says of a place depends on those before it alone. So a canvas whose
text is rewritten from some place on is read from there; keys and values of what stands before it are kept. Each row is
read with its own past and its own speech, and products are shared by all rows: neighbours change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.model.layers import Block, KeysValues, Past
from diffasr.model.memory import Memory, alone

if TYPE_CHECKING:
    from diffasr.model.whisper import WhisperDecoder


@dataclass
class _Row:
    speech: list[KeysValues]
    """Of each layer, real frames only."""
    past: list[Past]
    seen: list[int] = field(default_factory=list)
    """What ``past`` has read."""


class Rereader:
    """What the decoder says of texts, step after step."""

    def __init__(self, decoder: "WhisperDecoder", prefixes: Tensor, memory: Memory) -> None:
        """prefixes: (B, P) clean tokens before each text."""
        self._decoder = decoder
        self._prefixes: list[list[int]] = prefixes.tolist()
        self._rows = [
            _Row(alone(memory, row, len(prefixes)), [Past() for _ in decoder.layers]) for row in range(len(prefixes))
        ]

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[tuple[int, Tensor]]:
        """Texts of (U,) tokens, each with the number of its row, to what is new: the first place that is said something
        else of than before, and the logits (U + 1 - first, V) from there on, up to the place behind the text."""
        going, tokens = list[tuple[_Row, int]](), list[list[int]]()
        for number, text in texts:
            row, whole = self._rows[number], [*self._prefixes[number], *text]
            known = _alike(row.seen, whole)
            for past in row.past:
                past.cut(known)
            row.seen = whole
            going.append((row, known))
            tokens.append(whole[known:])
        told = self._told(going, tokens) if any(tokens) else [torch.empty(0)] * len(tokens)
        found = []
        for (number, _), (_, known), logits in zip(texts, going, told, strict=True):
            last = len(self._prefixes[number]) - 1  # of the prefix only the last place speaks
            unread = max(0, last - known)
            found.append((known + unread - last, logits[unread:]))
        return found

    def _told(self, rows: Sequence[tuple[_Row, int]], tokens: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        """Logits (n, V) of each row's new tokens."""
        decoder, sizes = self._decoder, [len(new) for new in tokens]
        places = torch.cat([torch.arange(known, known + size) for (_, known), size in zip(rows, sizes, strict=True)])
        x = decoder.embed_tokens(torch.tensor([token for new in tokens for token in new]))
        x = (x + decoder.embed_positions.weight[places])[None]  # (1, N, D)
        for number, block in enumerate(cast("list[Block]", list(decoder.layers))):
            x = _through(block, x, [(row.past[number], row.speech[number]) for row, _ in rows], sizes)
        return decoder.unembed(decoder.layer_norm(x))[0].split(sizes)


def _through(block: Block, x: Tensor, rows: Sequence[tuple[Past, KeysValues]], sizes: Sequence[int]) -> Tensor:
    """``Block.forward`` for rows that stand one behind the other in (1, N, D), each with its own past and speech."""
    queries, (keys, values) = block.self_attn.queries_keys_values(block.self_attn_layer_norm(x))
    heard = []
    parts = zip(rows, *(part.split(sizes, dim=2) for part in (queries, keys, values)), strict=True)
    for (past, _), q, k, v in parts:
        before, size = past.length, q.shape[2]
        mask = torch.ones(size, before + size, dtype=torch.bool).tril(before)
        near, far = past.grown((k, v))
        heard.append(F.scaled_dot_product_attention(q, near, far, mask))
    x = x + block.self_attn.merged(torch.cat(heard, dim=2))
    asked = block.encoder_attn.queries(block.encoder_attn_layer_norm(x)).split(sizes, dim=2)
    heard = [F.scaled_dot_product_attention(q, *speech) for q, (_, speech) in zip(asked, rows, strict=True)]
    x = x + block.encoder_attn.merged(torch.cat(heard, dim=2))
    return x + block.thought(x)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
