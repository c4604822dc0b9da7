"""Reading a canvas again of which only the end has changed.

Where a decoder does not see later places, what it says of a place depends on those before it alone. So a canvas whose
text is rewritten from some place on is read from there; keys and values of what stands before it are kept. Each row is
read with its own past and its own speech, and products are shared by all rows: neighbours change nothing.

Where the decoder has a drafter, it goes on from any place of the text that was read last.
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
    from diffasr.model.drafter import Drafter
    from diffasr.model.whisper import WhisperDecoder


@dataclass
class _Row:
    speech: list[KeysValues]
    """Of each layer, real frames only."""
    past: list[Past]
    seen: list[int] = field(default_factory=list)
    """What ``past`` has read."""
    hidden: list[Tensor] = field(default_factory=list)
    """(D,) of each place that was read."""


@dataclass
class _Draft:
    """Where the drafter was asked last."""

    rows: list[int]
    start: int
    tokens: list[int]
    hidden: Tensor
    """(R, D) of the last token."""
    past: list[list[Past]]
    """Of each row and layer, that token included."""


class Rereader:
    """What the decoder says of texts, step after step."""

    def __init__(self, decoder: "WhisperDecoder", prefixes: Tensor, memory: Memory, deaf: Memory | None = None) -> None:
        """prefixes: (B, P) clean tokens before each text. deaf: what rows B to 2 B hear, where there are any: the same
        texts without the sound."""
        self._decoder = decoder
        self._draft: _Draft | None = None
        self._prefixes: list[list[int]] = prefixes.tolist()
        heard = [alone(some, row, len(prefixes)) for some in (memory, deaf) if some for row in range(len(prefixes))]
        self._prefixes *= len(heard) // max(1, len(prefixes))
        self._rows = [_Row(speech, [Past() for _ in decoder.layers]) for speech in heard]

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[tuple[int, Tensor]]:
        """Texts of (U,) tokens, each with the number of its row, to what is new: the first place that is said something
        else of than before, and the logits (U + 1 - first, V) from there on, up to the place behind the text."""
        going, tokens = list[tuple[_Row, int]](), list[list[int]]()
        for number, text in texts:
            row, whole = self._rows[number], [*self._prefixes[number], *text]
            known = _alike(row.seen, whole)
            for past in row.past:
                past.cut(known)
            row.seen, row.hidden = whole, row.hidden[:known]
            going.append((row, known))
            tokens.append(whole[known:])
        self._draft = None
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
        hidden = decoder.layer_norm(x)
        for (row, _), new in zip(rows, hidden[0].split(sizes), strict=True):
            row.hidden += new
        return decoder.unembed(hidden)[0].split(sizes)

    @property
    def drafts(self) -> bool:
        """Whether there is a drafter."""
        return self._decoder.drafter is not None

    def ahead(self, rows: Sequence[int], place: int, tokens: Sequence[int]) -> Tensor:
        """What the drafter expects behind the first ``place`` tokens of the text that ``rows`` read last, and behind
        ``tokens``, at least one, which follow there instead of the text's own: logits (R, V)."""
        decoder, drafter = self._decoder, cast("Drafter", self._decoder.drafter)
        layers = cast("list[Block]", list(drafter.layers))
        draft = self._begun(list(rows), len(self._prefixes[rows[0]]) + place, list(tokens[:-1]), len(layers))
        speech = [self._rows[row].speech[-len(layers) :] for row in rows]
        for token in tokens[len(draft.tokens) :]:
            embedded = decoder.embed_tokens(torch.tensor([token]))
            embedded = embedded + decoder.embed_positions.weight[draft.start + len(draft.tokens)]  # (1, D)
            x = drafter.entered(draft.hidden, embedded)[None]  # (1, R, D)
            for number, block in enumerate(layers):
                pairs = [(past[number], heard[number]) for past, heard in zip(draft.past, speech, strict=True)]
                x = _through(block, x, pairs, [1] * len(rows))
            draft.hidden = drafter.layer_norm(x)[0]
            draft.tokens.append(token)
        self._draft = draft
        return decoder.unembed(draft.hidden)

    def _begun(self, rows: list[int], start: int, tokens: list[int], depth: int) -> _Draft:
        """The draft of last time, where it goes on with ``tokens``, or a new one; depth: layers."""
        last = self._draft
        if last is not None and (last.rows, last.start, last.tokens) == (rows, start, tokens):
            return last
        mine = [self._rows[row] for row in rows]
        hidden = torch.stack([row.hidden[start - 1] for row in mine])
        return _Draft(rows, start, [], hidden, [[past.first(start) for past in row.past[-depth:]] for row in mine])


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
