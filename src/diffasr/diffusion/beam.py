"""What CTC most likely heard, if the letters shall also make a text of the language.

Prefix beam search over CTC's labels, which are short enough to be read letter by letter: arXiv:1408.2873 algorithm 1,
with a model of letters in place of one of words, and a bonus for each letter, as CTC leaves letters out rather than in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappush, heappushpop
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from diffasr.diffusion.ctc import Path
from diffasr.letters import END, START, LanguageLetters

NEVER = -1e30
LABELS = 8
"""Labels that are weighed in a slot, beside the blank."""
LEAST = 5.0
"""Nats below the likeliest one at which a label is not weighed."""
SILENT = math.log(0.995)
"""From this log-probability of the blank on, a slot is taken for silence."""


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How the best text is looked for."""

    size: int
    """Texts that are kept from slot to slot."""
    weight: float
    """What the model of letters counts for beside CTC; at least 0."""
    bonus: float
    """Nats that each letter is worth."""


Trail = tuple["Trail | None", int, int]
"""The trail before, a label, and the slot in which it was heard first."""


@dataclass(slots=True, eq=False)
class _Read:
    """What a text of the beam reads, however it is spelled."""

    letters: str
    half: bytes
    """Of a letter that is not whole yet."""
    fluent: float
    """What the model of letters says of it, weighed, bonus included: no more than this while some are unasked."""
    unasked: int = 0
    """Letters at its end that are taken for certain as yet."""
    longer: "dict[int, _Read]" = field(default_factory=dict)
    """With a label more, of those that were met."""


@dataclass(slots=True, eq=False)
class _Text:
    """One text of the beam, with the label that it ends in."""

    read: _Read
    last: int
    trail: Trail | None
    heard: float = NEVER
    """Log-probability that it was said by now, the last slot in its last label."""
    over: float = NEVER
    """The same, the last slot a blank."""
    loudest: float = NEVER
    """Of the slots in which its last label may have begun, the likeliest: ``trail`` has that one."""
    total: float = NEVER
    """Of ``heard`` and ``over``."""


_Texts = dict[tuple[_Read, int], _Text]
"""By what they read and their last label."""


class Beam:
    """Looks for the best text of a clip."""

    def __init__(
        self, writings: Sequence[bytes], letters: LanguageLetters, options: BeamOptions, *, blank: int
    ) -> None:
        """writings: how each label is written, in UTF-8; a label may be a part of a letter."""
        self._writings, self._letters, self._options, self._blank = writings, letters, options, blank
        self._reads: dict[tuple[str, bytes], _Read] = {}
        """What was met, by its letters and its half."""

    def best(self, log_probs: NDArray[np.float32]) -> Path:
        """The best text of (N, C) log-probabilities in labels; its log-probability is CTC's of all of its spellings."""
        nothing = _Read("", b"", 0.0)
        self._reads = {("", b""): nothing}
        texts = [_Text(nothing, -1, None, over=0.0, total=0.0)]
        for slot, row in enumerate(log_probs):
            blank = float(row[self._blank])
            if blank > SILENT:
                for text in texts:
                    text.over, text.heard = text.total + blank, NEVER
                    text.total = text.over
            else:
                texts = self._kept(self._longer(texts, row, slot, blank))
        ended: dict[str, list[_Text]] = {}
        for text in texts:
            ended.setdefault(text.read.letters, []).append(text)
        spellings = max(ended.values(), key=self._ended)
        labels, slots = _spelled(max(spellings, key=lambda text: text.total).trail)
        return Path(labels, slots, _all_of(spellings))

    def _longer(self, texts: Sequence[_Text], row: NDArray[np.float32], slot: int, blank: float) -> _Texts:
        """Each text with one more slot: as it is, or with a label more."""
        labels = _likely(row, self._blank)
        found: _Texts = {}
        for text in texts:
            _stay(found, text, row, blank)
            for label, score in labels:
                before = text.over if label == text.last else text.total  # a blank stands between two equal labels
                if before <= NEVER:
                    continue
                read = text.read.longer.get(label) or self._with(text.read, label)
                heard, longer = before + score, found.get((read, label))
                if longer is None:
                    found[read, label] = _Text(read, label, (text.trail, label, slot), heard, loudest=heard)
                    continue
                longer.heard = _sum(longer.heard, heard)
                if heard > longer.loudest:
                    longer.trail, longer.loudest = (text.trail, label, slot), heard
        return found

    def _with(self, read: _Read, label: int) -> _Read:
        """``read`` with a label behind it."""
        added, half = _whole(read.half + self._writings[label])
        added = added if read.letters else added.lstrip(START)
        found = self._reads.get((read.letters + added, half))
        if found is None:
            most = read.fluent + self._options.bonus * len(added)
            found = self._reads[read.letters + added, half] = _Read(read.letters + added, half, most, len(added))
        if found is not read:  # a space before all letters
            read.longer[label] = found
        return found

    def _ask(self, read: _Read) -> None:
        """Read its last letters."""
        score, size = 0.0, len(read.letters)
        row = START + read.letters
        for place in range(size - read.unasked + 1, size + 1):
            score += self._letters.log_probability(row[:place], row[place])
        read.fluent, read.unasked = read.fluent + self._options.weight * score, 0

    def _kept(self, texts: _Texts) -> list[_Text]:
        """The best; those that would not be among them if all their letters were certain are not read for it."""
        for text in texts.values():
            text.total = _sum(text.heard, text.over)
        size, best = self._options.size, list[float]()
        hopes = [(text.total + text.read.fluent, text) for text in texts.values()]
        for hope, text in sorted(hopes, key=itemgetter(0), reverse=True):
            if len(best) == size and hope < best[0]:
                break
            if text.read.unasked:
                self._ask(text.read)
            (heappush if len(best) < size else heappushpop)(best, text.total + text.read.fluent)
        read = [text for text in texts.values() if not text.read.unasked]
        return sorted(read, key=lambda text: text.total + text.read.fluent, reverse=True)[:size]

    def _ended(self, spellings: Sequence[_Text]) -> float:
        """What a text is worth that ends here."""
        read = spellings[0].read
        end = self._letters.log_probability(START + read.letters, END)
        return _all_of(spellings) + read.fluent + self._options.weight * end


def _likely(row: NDArray[np.float32], blank: int) -> list[tuple[int, float]]:
    """The labels that are weighed in a slot, each with its log-probability."""
    likely = np.flatnonzero(row > row.max() - LEAST)
    if len(likely) > LABELS + 1:  # the blank is one of them, or else they are one more
        likely = likely[np.argpartition(-row[likely], LABELS)[: LABELS + 1]]
    return [(n, score) for n, score in zip(likely.tolist(), row[likely].tolist(), strict=True) if n != blank]


def _stay(found: _Texts, text: _Text, row: NDArray[np.float32], blank: float) -> None:
    """Put ``text`` in as it is, or add to its chance where it is there already."""
    same = found.get((text.read, text.last))
    if same is None:
        same = found[text.read, text.last] = _Text(text.read, text.last, text.trail, loudest=text.loudest)
    elif text.loudest > same.loudest:
        same.trail, same.loudest = text.trail, text.loudest
    same.over = text.total + blank
    if text.last >= 0:
        same.heard = _sum(same.heard, text.heard + row.item(text.last))


def _all_of(spellings: Sequence[_Text]) -> float:
    return float(np.logaddexp.reduce([text.total for text in spellings]))


def _sum(one: float, other: float) -> float:
    """The logarithm of the sum of two numbers given by theirs."""
    if one < other:
        one, other = other, one
    return one if other <= NEVER / 2 else one + math.log1p(math.exp(other - one))


def _spelled(trail: Trail | None) -> tuple[list[int], list[int]]:
    labels, slots = list[int](), list[int]()
    while trail is not None:
        trail, label, slot = trail
        labels.append(label)
        slots.append(slot)
    return labels[::-1], slots[::-1]


@lru_cache(10_000)
def _whole(written: bytes) -> tuple[str, bytes]:
    """The whole letters that UTF-8 begins with, and the rest of it; what is no UTF-8 is one letter a byte."""
    try:
        return written.decode(), b""
    except UnicodeDecodeError as error:
        is_cut = error.reason == "unexpected end of data"
        if is_cut:
            return written[: error.start].decode(), written[error.start :]
        return written.decode(errors="replace"), b""
