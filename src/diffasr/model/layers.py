"""Whisper's transformer block, for the encoder and for the decoder.

Module names are those of ``transformers``' Whisper, so that a published checkpoint loads without renaming.
Source: arXiv:2212.04356 section 2.2; layout of openai/whisper (MIT), written anew.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
MOST = 512
"""Places that an MLP takes together where each is by itself: what is four times as wide as they are stays small."""


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere and be computed once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.joint: nn.Module | None = None
        """Queries, keys and values in one product, where somebody has joined them: quantised.py."""
        self.is_apart = False
        """Whether each row attends by itself, with its own queries to its own keys and no padding: what it gives does
        not depend on its neighbours then, to the last bit. Sums of floats depend on how many there are."""

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """(B, L, width) to its own queries, keys and values, each (B, H, L, K)."""
        if self.joint is None:
            return self.queries(x), self.keys_values(x)
        queries, keys, values = self.joint(x).chunk(3, dim=-1)
        return self._split(queries), (self._split(keys), self._split(values))

    def keys_values(self, source: Tensor) -> KeysValues:
        """(B, T, width) to keys and values, each (B, H, T, K)."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(
        self,
        x: Tensor,
        source: KeysValues,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """(B, L, width) attends to ``source``; ``mask`` is true where a query may look, (B, 1, 1 or L, T).

        lengths: (B,) real queries of each row, where that matters: see ``is_apart``.
        """
        return self.attend(self.queries(x), source, mask, causal=causal, lengths=lengths)

    def queries(self, x: Tensor) -> Tensor:
        """(B, L, width) to its queries, (B, H, L, K)."""
        return self._split(self.q_proj(x))

    def merged(self, heard: Tensor) -> Tensor:
        """What the heads heard, (B, H, L, K), put together: (B, L, width)."""
        return self.out_proj(heard.transpose(1, 2).flatten(2))

    def attend(
        self,
        queries: Tensor,
        source: KeysValues,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The same from queries (B, H, L, K). A ``source`` of fewer rows is shared by neighbours."""
        if self.is_apart and lengths is not None and not causal:
            return self.merged(_row_by_row(queries, source, mask, lengths))
        keys, values = source
        sharing = len(queries) // len(keys) if len(keys) else 1
        if sharing > 1:
            queries = queries.unflatten(0, (-1, sharing)).transpose(1, 2).flatten(2, 3)  # (B / n, H, n * L, K)
        heard = F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)
        if sharing > 1:
            heard = heard.unflatten(2, (sharing, -1)).transpose(1, 2).flatten(0, 1)  # (B, H, L, K)
        return self.merged(heard)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, K)


def _row_by_row(queries: Tensor, source: KeysValues, mask: Tensor | None, lengths: Tensor) -> Tensor:
    """Attention of (B, H, L, K) to the same; 0 behind a row's ``lengths``.

    mask: one of keys, (rows of ``source``, 1, 1, T), or what is added to the scores, (B, H, L, T).
    """
    keys, values = source
    sharing = max(1, len(queries) // max(1, len(keys)))
    sizes = [keys.shape[2]] * len(keys) if mask is None else _last_seen(mask)
    rows = []
    for row, count in enumerate(lengths.tolist()):
        owner = row // sharing
        size = sizes[owner]
        added = None if mask is None or mask.dtype == torch.bool else mask[row : row + 1, :, :count, :size]
        near, far = keys[owner : owner + 1, :, :size], values[owner : owner + 1, :, :size]
        heard = F.scaled_dot_product_attention(queries[row : row + 1, :, :count], near, far, added)
        rows.append(F.pad(heard, (0, 0, 0, queries.shape[2] - count)))
    return torch.cat(rows)


def _last_seen(mask: Tensor) -> list[int]:
    """How many keys each row of a mask leaves to its first query: those at the end are padding."""
    first = mask[:, 0, 0]
    return (first if mask.dtype == torch.bool else first > float("-inf")).sum(1).tolist()


class Past:
    """Keys and values of the places that a layer has read so far."""

    def __init__(self) -> None:
        self.keys_values: KeysValues | None = None

    @property
    def length(self) -> int:
        """How many places."""
        return 0 if self.keys_values is None else self.keys_values[0].shape[2]

    def grown(self, new: KeysValues) -> KeysValues:
        """Those of the past and ``new`` ones behind them, which are past from now on."""
        if self.keys_values is not None:
            new = torch.cat((self.keys_values[0], new[0]), dim=2), torch.cat((self.keys_values[1], new[1]), dim=2)
        self.keys_values = new
        return new

    def first(self, length: int) -> "Past":
        """Another one, of the first ``length`` places."""
        other = Past()
        other.keys_values = self.keys_values
        other.cut(length)
        return other

    def cut(self, length: int) -> None:
        """Forget all but the first ``length`` places."""
        if self.keys_values is not None:
            keys, values = self.keys_values
            self.keys_values = keys[:, :, :length], values[:, :, :length]


class Block(nn.Module):
    """Self-attention, then (in a decoder) attention to the speech, then a two-layer MLP; norms come first."""

    def __init__(self, width: int, heads: int, hidden: int, *, hears: bool) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if hears:
            self.encoder_attn = Attention(width, heads)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        speech: tuple[KeysValues, Tensor | None] | None = None,
        *,
        causal: bool = False,
        past: Past | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """(B, L, width) in and out. ``speech``: where it hears, keys and values of the frames and which are real.

        ``past`` is what ``x`` goes on from; it grows. lengths: (B,) real places of ``x``; see ``Attention``.
        """
        queries, own = self.self_attn.queries_keys_values(self.self_attn_layer_norm(x))
        own = own if past is None else past.grown(own)
        x = x + self.self_attn.attend(queries, own, mask, causal=causal, lengths=lengths)
        if speech is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), *speech, lengths=lengths)
        return x + self.thought(x)

    def thought(self, x: Tensor) -> Tensor:
        """What the MLP makes of (B, L, width)."""
        if not self.self_attn.is_apart:
            return self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        parts = self.final_layer_norm(x).flatten(0, 1).split(MOST)
        return torch.cat([self.fc2(F.gelu(self.fc1(part))) for part in parts]).view_as(x)


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding (rows, width), random but on the meta device: there torch would load its compiler to draw nothing,
    which takes half a second and 60 MB."""
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else nn.init.normal_(weight))


def key_mask(lengths: Tensor, size: int) -> Tensor:
    """Which of ``size`` places are real, per row: (B,) lengths to (B, 1, 1, size) bool, ready for attention."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None, None, :]
