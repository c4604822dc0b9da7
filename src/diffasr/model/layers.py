"""Whisper's transformer block, for the encoder and for the decoder.

Module names are those of ``transformers``' Whisper, so that a published checkpoint loads without renaming.
Source: arXiv:2212.04356 section 2.2; layout of openai/whisper (MIT), written anew.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere and be computed once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """(B, L, width) to its own queries, keys and values, each (B, H, L, K)."""
        return self.queries(x), self.keys_values(x)

    def keys_values(self, source: Tensor) -> KeysValues:
        """(B, T, width) to keys and values, each (B, H, T, K)."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(self, x: Tensor, source: KeysValues, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """(B, L, width) attends to ``source``; ``mask`` is true where a query may look, (B, 1, 1 or L, T)."""
        return self.attend(self.queries(x), source, mask, causal=causal)

    def queries(self, x: Tensor) -> Tensor:
        """(B, L, width) to its queries, (B, H, L, K)."""
        return self._split(self.q_proj(x))

    def merged(self, heard: Tensor) -> Tensor:
        """What the heads heard, (B, H, L, K), put together: (B, L, width)."""
        return self.out_proj(heard.transpose(1, 2).flatten(2))

    def attend(
        self, queries: Tensor, source: KeysValues, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """The same from queries (B, H, L, K). A ``source`` of fewer rows is shared by neighbours."""
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
    ) -> Tensor:
        """(B, L, width) in and out. ``speech``: where it hears, keys and values of the frames and which are real.

        ``past`` is what ``x`` goes on from; it grows.
        """
        queries, own = self.self_attn.queries_keys_values(self.self_attn_layer_norm(x))
        own = own if past is None else past.grown(own)
        x = x + self.self_attn.attend(queries, own, mask, causal=causal)
        if speech is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), *speech)
        return x + self.thought(x)

    def thought(self, x: Tensor) -> Tensor:
        """What the MLP makes of (B, L, width)."""
        return self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


def table(rows: int, width: int) -> nn.Embedding:
    """An embedding (rows, width), random but on the meta device: there torch would load its compiler to draw nothing,
    which takes half a second and 60 MB."""
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else nn.init.normal_(weight))


def key_mask(lengths: Tensor, size: int) -> Tensor:
    """Which of ``size`` places are real, per row: (B,) lengths to (B, 1, 1, size) bool, ready for attention."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[:, None, None, :]
