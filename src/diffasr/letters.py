"""A model of letters: how likely each one is behind those before it, in each language.

N-grams, smoothed as in Witten and Bell, The zero-frequency problem, IEEE Transactions on Information Theory 37 (1991),
method C, interpolated; Chen and Goodman, arXiv:cmp-lg/9606011, section 2.5. They lie in a hash table that keeps a mark
of 16 bits in place of each n-gram's letters, so that one that was never seen is taken for another about once in twenty
thousand lookups. Numbers are natural logarithms, in sixteenths of a nat.
"""

from binascii import crc_hqx
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from diffasr.errors import ModelError

Array = NDArray[Any]
STEP = 1 / 16
"""Nats that one step of a stored number stands for."""
UNSEEN = 8.0
"""Nats that a letter costs which no text had, beside what its context leaves to such letters."""
REMEMBERED = 30_000
"""Answers that are kept for when they are asked again: about a minute of speech."""
START, END = " ", "\n"
"""Written before the first letter of a text, and behind its last."""
_LOAD = 0.75  # share of the table's places that are taken


@dataclass(frozen=True)
class Gram:
    """What is known of some letters in a row."""

    share: float
    """Log-probability of the last of them behind the others."""
    rest: float
    """What is added to the log-probability of a letter that they were never followed by, and the first of them is
    then left out of sight; 0 where they are no context of anything."""


class Letters:
    """The table; ``language`` gives the model of one language."""

    def __init__(self, order: int, marks: Array, shares: Array, rests: Array) -> None:
        """order: of the longest n-grams. marks: (M,) int16, 0 where a place is free; shares, rests: (M,) uint8.

        Raises ModelError where they are not of one table.
        """
        if order < 1 or not len(marks) or not marks.shape == shares.shape == rests.shape:
            raise ModelError(f"the model of letters has order {order} and {len(marks)} places: fetch it again")
        if bool((marks != 0).all()):  # who looks for what is not there would never come to an end
            raise ModelError("the model of letters has no free place: fetch it again")
        self.order, self.arrays = order, (marks, shares, rests)
        self._marks = marks.view(np.uint16).data  # a memoryview: far quicker to read one number from
        self._shares, self._rests = shares.data, rests.data
        self._size = len(marks)
        self._languages: dict[str, LanguageLetters] = {}

    @classmethod
    def packed(cls, order: int, grams: Iterable[tuple[str, str, Gram]], count: int) -> "Letters":
        """A table of ``count`` n-grams, each with its language."""
        size = int(count / _LOAD) + 1
        marks, shares, rests = np.zeros(size, np.uint16), np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        places, written, left = marks.data, shares.data, rests.data
        for language, letters, gram in grams:
            crc, mark = _hashes(letters, _hashes(f"{language}:"))
            place = crc % size
            while places[place]:
                place = (place + 1) % size
            places[place] = mark or 1
            written[place], left[place] = _stored(gram.share), _stored(gram.rest)
        return cls(order, marks.view(np.int16), shares, rests)

    def language(self, code: str) -> "LanguageLetters":
        """The model of one language; what was asked of it is remembered, up to a limit."""
        if code not in self._languages:
            self._languages[code] = LanguageLetters(self, code)
        return self._languages[code]

    def find(self, language: str, letters: str) -> Gram | None:
        """What is stored of an n-gram."""
        place = self.place(*_hashes(letters, _hashes(f"{language}:")))
        return None if place is None else Gram(self.share(place), self.rest(place))

    def place(self, crc: int, mark: int) -> int | None:
        """Where the n-gram with these hashes lies."""
        marks, size, mark = self._marks, self._size, mark or 1
        place = crc % size
        while (there := marks[place]) != mark:
            if not there:
                return None
            place = (place + 1) % size
        return place

    def share(self, place: int) -> float:
        """See Gram."""
        return -STEP * self._shares[place]

    def rest(self, place: int) -> float:
        """See Gram."""
        return -STEP * self._rests[place]

    def state(self) -> dict[str, Array]:
        """Arrays for a file."""
        return dict(zip(NAMES, (np.array(self.order), *self.arrays), strict=True))

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> "Letters | None":
        """The same from a file's arrays, None where there are none of it; raises ModelError where some are missing."""
        if not any(name in state for name in NAMES):
            return None
        missing = [name for name in NAMES if name not in state]
        if missing:
            raise ModelError(f"the model of letters lacks {', '.join(missing)}: fetch it again")
        order, *arrays = (state[name] for name in NAMES)
        return cls(int(order), *arrays)


NAMES = ("letters.order", "letters.marks", "letters.shares", "letters.rests")
"""Of its arrays in a file."""


@dataclass(slots=True)
class _Context:
    """Letters, and what was asked behind them."""

    ends: list[tuple[int, int, float]]
    """Those of their ends that are stored, the longest first: the hashes of each, and its rest."""
    known: dict[str, float] = field(default_factory=dict)
    """The log-probability of each letter that was asked for."""


class LanguageLetters:
    """How likely letters are in one language."""

    def __init__(self, letters: Letters, code: str) -> None:
        self._letters, self._none = letters, _hashes(f"{code}:")
        self.reach = letters.order - 1
        """How many letters before one count."""
        self._contexts: dict[str, _Context] = {}
        self._answers = 0

    def log_probability(self, before: str, letter: str) -> float:
        """In nats, of one letter behind ``before``, of which the last ``reach`` letters count."""
        behind = before[-self.reach :] if self.reach else ""
        context = self._contexts.get(behind)
        found = None if context is None else context.known.get(letter)
        return self._looked_up(behind, letter) if found is None else found

    def _looked_up(self, behind: str, letter: str) -> float:
        """The same, remembered; the hashes of an end and the letter go on from those of the end."""
        if self._answers >= REMEMBERED:
            self._contexts.clear()
            self._answers = 0
        context = self._contexts.get(behind)
        if context is None:
            context = self._contexts[behind] = _Context(self._ends(behind))
        written, total = letter.encode(), 0.0
        for crc, mark, rest in context.ends:
            place = self._letters.place(crc32(written, crc), crc_hqx(written, mark))
            if place is not None:
                total += self._letters.share(place)
                break
            total += rest
        else:
            total -= UNSEEN
        context.known[letter] = total
        self._answers += 1
        return total

    def _ends(self, behind: str) -> list[tuple[int, int, float]]:
        found, (first_crc, first_mark) = [], self._none
        for start in range(len(behind) + 1):
            written = behind[start:].encode()
            crc, mark = crc32(written, first_crc), crc_hqx(written, first_mark)
            place = self._letters.place(crc, mark)
            if place is not None:
                found.append((crc, mark, self._letters.rest(place)))
        return found

    def text(self, letters: str) -> float:
        """Log-probability of a whole text, its end included."""
        row = START + letters + END
        return sum(self.log_probability(row[max(0, n - self.reach) : n], row[n]) for n in range(1, len(row)))


def _hashes(letters: str, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Of an n-gram, whose place and mark they make; ``before``: those of what its name begins with."""
    written = letters.encode()
    return crc32(written, before[0]), crc_hqx(written, before[1])


def _stored(number: float) -> int:
    return min(255, round(-number / STEP))
