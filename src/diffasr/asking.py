"""What the sampler's rows are told at a step: the network's logits, guided and fused with CTC's as the options say.

The sampler stays on the CPU, with its dice; the network's work, and what it says of each token, may be elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffasr.ballots import told
from diffasr.diffusion.fuse import fused, guided
from diffasr.diffusion.sampler import Beliefs, SamplingOptions, beliefs
from diffasr.errors import OptionError
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache
from diffasr.model.reread import Rereader
from diffasr.text import LANGUAGES, Tokenizer

_NEVER = -20.0  # nats, for all but the end behind a text: what a step writes there has not been read, and counts so


class Asking:
    """Asks about the rows that are still going, and forgets what belongs to the others."""

    def __init__(self, model: Model, cache: Cache, lengths: Tensor, options: SamplingOptions) -> None:
        """lengths: (B,) canvas places that each row of ``cache`` uses.

        Raises OptionError for guidance where the backbone can't do without the sound.
        """
        self.network, self.options = model.network, options
        device = cache.audio.device
        self.lengths = lengths.to(device)
        self.openings = torch.tensor(model.tokenizer.openings if options.ctc_weight > 0 else (), device=device)
        self.rows = torch.arange(len(lengths))
        """(R,) of the batch, those that are still going."""
        self.cache = cache
        """Of ``rows``; with guidance of them twice, the second time without the sound."""
        self.guidance = torch.tensor(_guidance(model, cache, options))
        """(B,) of each row."""
        self.times = 2 if bool((self.guidance > 0).any()) else 1
        self.again: Again | None = None
        if options.accept == "joint" and options.ctc_weight == 0:
            self.again = _again(model, cache, lengths, self.guidance.tolist())
        if self.times == 2 and self.again is None:
            twice = torch.arange(len(lengths), device=device).repeat(2)
            is_deaf = torch.arange(2 * len(lengths), device=device) >= len(lengths)
            self.cache = self.network.without_audio(self.network.select(cache, twice), is_deaf)

    def __call__(self, canvas: Tensor, previous: Tensor | None, rows: Tensor, hints: Tensor) -> Tensor:
        """Logits (R, L, V) of the canvas (R, L) of ``rows`` (R,), which are among those of the call before.

        previous: (R, L, V) logits of the step before, or None. hints: (B, L) of the whole batch.
        """
        if self.again is not None:
            return self.again(canvas, rows)
        self._let_go(rows)
        device, times, weight = self.cache.audio.device, self.times, self.options.ctc_weight
        where = rows.to(device)
        known = hints[where]  # (R, L)
        logits = self.network.denoise(
            canvas.to(device).repeat(times, 1),
            self.cache,
            lengths=self.lengths[where].repeat(times),
            previous=None if previous is None else previous.repeat(times, 1, 1),
            hints=known if times == 1 else torch.cat((known, torch.full_like(known, -1))),
        )
        if times == 2:
            told, untold = logits.chunk(2)
            logits = guided(told, untold, self.guidance[rows].to(told)[:, None, None])
        if weight > 0:
            logits = fused(logits, self.cache.ctc[: len(rows)], known, self.openings, weight)
        return logits

    def beliefs(self, logits: Tensor) -> Beliefs:
        """See ``sampler.beliefs``; of logits that were just given it is known what they say where they are old."""
        again = self.again
        return beliefs(logits) if again is None or logits is not again.given else again.believed

    @property
    def drafts(self) -> bool:
        """Whether ``ahead`` can be asked."""
        return self.again is not None and self.again.drafts

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Tensor:
        """What the drafter says behind the first ``place`` tokens of a row's canvas and ``tokens``: logits (1, V)."""
        if self.again is None:
            raise OptionError("whole canvases are read here, without a drafter: set draft to 0")
        return self.again.ahead(row, place, tokens)

    def _let_go(self, rows: Tensor) -> None:
        """Keep of the cache what ``rows`` need."""
        if len(rows) < len(self.rows):
            places = torch.searchsorted(self.rows, rows)
            if self.times == 2:
                places = torch.cat((places, places + len(self.rows)))
            self.cache, self.rows = self.network.select(self.cache, places.to(self.cache.audio.device)), rows


def _guidance(model: Model, cache: Cache, options: SamplingOptions) -> list[float]:
    """Of each row of ``cache``."""
    if options.guidance is None and options.accept != "joint":
        return [0.0] * len(cache.slots)
    codes = list(LANGUAGES)
    return [told(model, options, "guidance", codes[index]) for index in cache.languages.tolist()]


def _again(model: Model, cache: Cache, lengths: Tensor, guidance: Sequence[float]) -> "Again | None":
    """None where the network has no rereader."""
    reader = model.network.rereader(cache)
    if reader is not None and max(guidance) > 0:
        deaf = model.network.without_audio(cache, torch.ones(len(lengths), dtype=torch.bool, device=cache.audio.device))
        reader = model.network.rereader(cache, deaf)
    return None if reader is None else Again(reader, model.tokenizer, lengths, guidance)


class Again:
    """Logits of canvases that are text and then ends, where only what has changed need be read again."""

    def __init__(self, reader: Rereader, tokenizer: Tokenizer, lengths: Tensor, guidance: Sequence[float] = ()) -> None:
        """lengths: (B,) canvas places that each row uses. guidance: of each row; none: of no row. Where some have it,
        ``reader`` has each row twice, the second time without the sound."""
        self._reader, self._end, self._lengths = reader, tokenizer.end, lengths.tolist()
        self._guidance = list(guidance) or [0.0] * len(lengths)
        self._sure = torch.full((tokenizer.size,), _NEVER)
        self._sure[self._end] = 0.0
        self._told = self._sure.repeat(len(lengths), max(self._lengths, default=0), 1)  # (B, L, V)
        self._of_sure = [float(part) for part in beliefs(self._sure[None, None])]
        self._beliefs = [torch.full(self._told.shape[:2], part) for part in self._of_sure]
        self._beliefs[0] = self._beliefs[0].long()
        self.given: Tensor | None = None
        """What it has told last,"""
        self.believed = (self._beliefs[0], self._beliefs[1], self._beliefs[2])
        """and what is believed by it."""

    def __call__(self, canvas: Tensor, rows: Tensor) -> Tensor:
        """Logits (R, L, V) of the canvas (R, L) of ``rows`` (R,); behind the first end, ends are sure."""
        texts = []
        for row, tokens in zip(rows.tolist(), canvas.tolist(), strict=True):
            used = tokens[: self._lengths[row]]
            texts.append((row, used[: used.index(self._end)] if self._end in used else used))
        for (row, text), (first, logits) in zip(texts, self._read(texts), strict=True):
            told, used = self._told[row], min(len(text) + 1, self._lengths[row])
            if used > first:  # a full canvas has no place behind its text
                told[first:used] = logits[: used - first]
            told[used:] = self._sure
            for part, new, sure in zip(self._beliefs, beliefs(told[None, first:used]), self._of_sure, strict=True):
                part[row, first:used], part[row, used:] = new[0], sure
        everyone = len(rows) == len(self._told)
        self.given = self._told if everyone else self._told[rows]
        tokens, totals, entropies = (part.clone() if everyone else part[rows] for part in self._beliefs)
        self.believed = tokens, totals, entropies
        return self.given

    @property
    def drafts(self) -> bool:
        """Whether the reader has a drafter."""
        return self._reader.drafts

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Tensor:
        """See Asking; guided as the canvas is."""
        weight = self._guidance[row]
        told = self._reader.ahead([row, self._deaf(row)] if weight > 0 else [row], place, tokens)
        return guided(told[:1], told[1:], weight) if weight > 0 else told

    def _deaf(self, row: int) -> int:
        """Which row of the reader is the same without the sound."""
        return len(self._lengths) + row

    def _read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> Sequence[tuple[int, Tensor]]:
        again = [(self._deaf(row), text) for row, text in texts if self._guidance[row] > 0]
        found = self._reader.read([*texts, *again])
        unheard = iter(found[len(texts) :])
        told = []
        for (row, _), (first, heard) in zip(texts, found, strict=False):
            weight = self._guidance[row]
            other = next(unheard)[1] if weight > 0 else heard
            told.append((first, guided(heard, other, weight) if weight > 0 and len(heard) else heard))
        return told
