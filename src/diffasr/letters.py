"""A model of letters: how likely each one is behind those before it, in each language.

N-grams, smoothed as in Witten and Bell, The zero-frequency problem, IEEE Transactions on Information Theory 37 (1991),
method C, interpolated; Chen and Goodman, arXiv:cmp-lg/9606011, section 2.5. They lie in a hash table that keeps a mark
of 16 bits in place of each n-gram's letters, so that one that was never seen is taken for another about once in twenty
thousand lookups. Numbers are natural logarithms, in sixteenths of a nat.
"""

import zlib
from binascii import crc_hqx
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffasr.errors import ModelError

STEP = 1 / 16
"""Nats that one step of a stored number stands for."""
UNSEEN = 8.0
"""Nats that a letter costs which no text had, beside what its context leaves to such letters."""
REMEMBERED = 30_000
"""Answers that are kept for when they are asked again: about a minute of speech, some 12 MB."""
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

    def __init__(self, order: int, marks: Tensor, shares: Tensor, rests: Tensor) -> None:
        """order: of the longest n-grams. marks: (M,) int16, 0 where a place is free; shares, rests: (M,) uint8.

        Raises ModelError where they are not of one table.
        """
        if order < 1 or not len(marks) or not marks.shape == shares.shape == rests.shape:
            raise ModelError(f"the model of letters has order {order} and {len(marks)} places: fetch it again")
        self.order, self.tensors = order, (marks, shares, rests)
        self._marks = marks.numpy().view(np.uint16).data  # a memoryview: far quicker to read one number from
        self._shares, self._rests = shares.numpy().data, rests.numpy().data
        self._size = len(marks)
        self._languages: dict[str, LanguageLetters] = {}

    @classmethod
    def packed(cls, order: int, grams: Iterable[tuple[str, str, Gram]], count: int) -> "Letters":
        """A table of ``count`` n-grams, each with its language."""
        size = int(count / _LOAD) + 1
        marks, shares, rests = np.zeros(size, np.uint16), np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        places, written, left = marks.data, shares.data, rests.data
        for language, letters, gram in grams:
            place, mark = _place_of(language, letters, size)
            while places[place]:
                place = (place + 1) % size
            places[place] = mark
            written[place], left[place] = _stored(gram.share), _stored(gram.rest)
        return cls(order, *map(torch.from_numpy, (marks.view(np.int16), shares, rests)))

    def language(self, code: str) -> "LanguageLetters":
        """The model of one language; what was asked of it is remembered, up to a limit."""
        if code not in self._languages:
            self._languages[code] = LanguageLetters(self, code)
        return self._languages[code]

    def find(self, language: str, letters: str) -> Gram | None:
        """What is stored of an n-gram."""
        place, mark = _place_of(language, letters, self._size)
        while (there := self._marks[place]) != mark:
            if not there:
                return None
            place = (place + 1) % self._size
        return Gram(-STEP * self._shares[place], -STEP * self._rests[place])

    def state(self) -> dict[str, Tensor]:
        """Tensors for a file."""
        return dict(zip(_NAMES, (torch.tensor(self.order), *self.tensors), strict=True))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Letters | None":
        """The same from a file's tensors, None where there are none of it; raises ModelError where some are missing."""
        if not any(name in state for name in _NAMES):
            return None
        missing = [name for name in _NAMES if name not in state]
        if missing:
            raise ModelError(f"the model of letters lacks {', '.join(missing)}: fetch it again")
        order, *tensors = (state[name] for name in _NAMES)
        return cls(int(order), *tensors)


_NAMES = ("letters.order", "letters.marks", "letters.shares", "letters.rests")


class LanguageLetters:
    """How likely letters are in one language."""

    def __init__(self, letters: Letters, code: str) -> None:
        self._letters, self._code = letters, code
        self.reach = letters.order - 1
        """How many letters before one count."""
        self._contexts: dict[str, list[tuple[str, float]]] = {}
        self._known: dict[tuple[str, str], float] = {}

    def log_probability(self, before: str, letter: str) -> float:
        """In nats, of one letter behind ``before``, of which the last ``reach`` letters count."""
        behind = before[-self.reach :] if self.reach else ""
        found = self._known.get((behind, letter))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
                self._contexts.clear()
            found = self._known[behind, letter] = self._looked_up(behind, letter)
        return found

    def _looked_up(self, behind: str, letter: str) -> float:
        total = 0.0
        for context, rest in self._seen(behind):
            gram = self._letters.find(self._code, context + letter)
            if gram is not None:
                return total + gram.share
            total += rest
        return total - UNSEEN

    def _seen(self, behind: str) -> list[tuple[str, float]]:
        """The ends of ``behind`` that are stored, the longest first, each with its rest."""
        found = self._contexts.get(behind)
        if found is None:
            ends = [behind[n:] for n in range(len(behind) + 1)]
            grams = [(end, self._letters.find(self._code, end)) for end in ends]
            found = self._contexts[behind] = [(end, gram.rest) for end, gram in grams if gram is not None]
        return found

    def text(self, letters: str) -> float:
        """Log-probability of a whole text, its end included."""
        row = START + letters + END
        return sum(self.log_probability(row[max(0, n - self.reach) : n], row[n]) for n in range(1, len(row)))


def _place_of(language: str, letters: str, size: int) -> tuple[int, int]:
    """Where an n-gram is looked for first, and its mark."""
    name = f"{language}:{letters}".encode()
    return zlib.crc32(name) % size, crc_hqx(name, 0) or 1


def _stored(number: float) -> int:
    return min(255, round(-number / STEP))
