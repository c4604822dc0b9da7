"""What CTC most likely heard, if the letters shall also make a text of the language.

Prefix beam search over CTC's labels, which are short enough to be read letter by letter: arXiv:1408.2873 algorithm 1,
with a model of letters in place of one of words, and a bonus for each letter, as CTC leaves letters out rather than in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """What the model of letters counts for beside CTC."""
    bonus: float
    """Nats that each letter is worth."""


Trail = tuple["Trail | None", int, int]
"""The trail before, a label, and the slot in which it was heard first."""


@dataclass(slots=True)
class _Text:
    """One text of the beam, with the label that it ends in."""

    letters: str
    half: bytes
    """Of a letter that is not whole yet."""
    last: int
    fluent: float
    """What the model of letters says of it, weighed, bonus included."""
    trail: Trail | None
    heard: float = NEVER
    """Log-probability that it was said by now, the last slot in its last label."""
    over: float = NEVER
    """The same, the last slot a blank."""
    loudest: float = field(default=NEVER, repr=False)
    """Of the slots in which its last label may have begun, the likeliest: ``trail`` has that one."""

    @property
    def total(self) -> float:
        return _sum(self.heard, self.over)


class Beam:
    """Looks for the best text of a clip."""

    def __init__(
        self, writings: Sequence[bytes], letters: LanguageLetters, options: BeamOptions, *, blank: int
    ) -> None:
        """writings: how each label is written, in UTF-8; a label may be a part of a letter."""
        self._writings, self._letters, self._options, self._blank = writings, letters, options, blank
        self._pieces = [_whole(writing) for writing in writings]
        self._read: dict[str, float] = {"": 0.0}
        """What each text is worth that was met."""

    def best(self, log_probs: NDArray[np.float32]) -> Path:
        """The best text of (N, C) log-probabilities in labels; its log-probability is CTC's of all of its spellings."""
        self._read = {"": 0.0}
        texts = {("", b"", -1): _Text("", b"", -1, 0.0, None, over=0.0)}
        for slot, row in enumerate(log_probs):
            blank = float(row[self._blank])
            if blank > SILENT:
                for text in texts.values():
                    text.over, text.heard = text.total + blank, NEVER
            else:
                texts = self._kept(self._longer(texts, row, slot, blank))
        ended: dict[str, list[_Text]] = {}
        for text in texts.values():
            ended.setdefault(text.letters, []).append(text)
        spellings = max(ended.values(), key=self._ended)
        labels, slots = _spelled(max(spellings, key=lambda text: text.total).trail)
        return Path(labels, slots, _all_of(spellings))

    def _longer(
        self, texts: dict[tuple[str, bytes, int], _Text], row: NDArray[np.float32], slot: int, blank: float
    ) -> dict[tuple[str, bytes, int], _Text]:
        """Each text with one more slot: as it is, or with a label more."""
        likely = np.argpartition(-row, min(LABELS, len(row) - 1))[: LABELS + 1]
        least = float(row[likely].max()) - LEAST
        labels = [(int(n), float(row[n])) for n in likely if n != self._blank and row[n] > least]
        found: dict[tuple[str, bytes, int], _Text] = {}
        for key, text in texts.items():
            total = text.total
            same = found.get(key)
            if same is None:
                same = found[key] = _Text(text.letters, text.half, text.last, text.fluent, text.trail)
            if text.loudest > same.loudest:
                same.trail, same.loudest = text.trail, text.loudest
            same.over = _sum(same.over, total + blank)
            if text.last >= 0:
                same.heard = _sum(same.heard, text.heard + float(row[text.last]))
            for label, score in labels:
                before = text.over if label == text.last else total  # a blank stands between two equal labels
                if before > NEVER:
                    self._add(found, text, label, before + score, slot)
        return found

    def _add(
        self, found: dict[tuple[str, bytes, int], _Text], text: _Text, label: int, score: float, slot: int
    ) -> None:
        """Put ``text`` with ``label`` behind it in, or add to its chance where it is there already."""
        added, half = _whole(text.half + self._writings[label]) if text.half else self._pieces[label]
        letters = text.letters + (added if text.letters else added.lstrip(START))
        longer = found.get((letters, half, label))
        if longer is None:
            longer = found[letters, half, label] = _Text(letters, half, label, self._fluent(text, letters), None)
        longer.heard = _sum(longer.heard, score)
        if score > longer.loudest:
            longer.trail, longer.loudest = (text.trail, label, slot), score

    def _fluent(self, text: _Text, letters: str) -> float:
        """What ``letters`` are worth, which begin as ``text`` does."""
        found = self._read.get(letters)
        if found is None:
            row, reach = START + letters, self._letters.reach
            score = 0.0
            for place in range(len(text.letters) + 1, len(row)):
                score += self._letters.log_probability(row[max(0, place - reach) : place], row[place])
            bonus = self._options.bonus * (len(letters) - len(text.letters))
            found = self._read[letters] = text.fluent + self._options.weight * score + bonus
        return found

    def _kept(self, texts: dict[tuple[str, bytes, int], _Text]) -> dict[tuple[str, bytes, int], _Text]:
        best = sorted(texts.items(), key=lambda item: item[1].total + item[1].fluent, reverse=True)
        return dict(best[: self._options.size])

    def _ended(self, spellings: Sequence[_Text]) -> float:
        """What a text is worth that ends here."""
        text = spellings[0]
        end = self._letters.log_probability(START + text.letters, END)
        return _all_of(spellings) + text.fluent + self._options.weight * end


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


def _whole(written: bytes) -> tuple[str, bytes]:
    """The whole letters that UTF-8 begins with, and the rest of it; what is no UTF-8 is one letter a byte."""
    try:
        return written.decode(), b""
    except UnicodeDecodeError as error:
        is_cut = error.reason == "unexpected end of data"
        if is_cut:
            return written[: error.start].decode(), written[error.start :]
        return written.decode(errors="replace"), b""
