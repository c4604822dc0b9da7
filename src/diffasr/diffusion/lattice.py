"""How likely CTC finds a text, however it is spelled in labels.

CTC's labels are short and a text can be cut into them in many ways. The forward pass here runs over all of them: a
node is a place in the text, an edge a label that is written from one place to another. Graves et al., ICML 2006,
section 4.1, for one spelling; the prefix probability is that of Graves, Supervised Sequence Labelling (2012),
section 7.5. All numbers are natural logarithms, and everything that was computed for a text is kept, so that another
one that begins alike costs only what differs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from diffasr.text import Spelling

Column = NDArray[np.float64]
NEVER = -1e30
"""Stands for the logarithm of 0: finite, so that differences are numbers."""


@dataclass(frozen=True)
class _Edge:
    """A label that ends at a place of the text."""

    label: int
    writing: str
    said: Column
    """(N + 1,) that the text up to here is over after so many slots, the last of them in this label."""
    over: Column
    """(N + 1,) the same with the last of them in a blank."""
    either: Column
    """(N + 1,) of both."""


@dataclass(frozen=True)
class _Node:
    """A place of the text: every label that may end there, and their sum."""

    edges: tuple[_Edge, ...]
    total: Column

    def before(self, label: int) -> Column:
        """(N + 1,) that ``label`` may begin next: behind the same label only after a blank."""
        for same in self.edges:
            if same.label == label:
                return _sum_of([edge.over if edge is same else edge.either for edge in self.edges])
        return self.total


class Sound:
    """CTC's posterior of one clip, (N, C) log-probabilities, as the lattices read it."""

    def __init__(self, log_probs: NDArray[np.float32], *, blank: int) -> None:
        self.log_probs, self.slots, self.blank = log_probs, len(log_probs), blank

    @cached_property
    def shares(self) -> NDArray[np.float32]:
        """The probabilities themselves."""
        return np.exp(self.log_probs)

    def reversed(self) -> "Sound":
        """The same, last slot first; nothing is copied."""
        return Sound(self.log_probs[::-1], blank=self.blank)


class Lattice:
    """Texts read from left to right, as the vocabulary writes them."""

    def __init__(self, sound: Sound, labels: Mapping[str, int], spelling: Spelling) -> None:
        """labels: by their writing; of ``spelling``, or reversed for a reversed sound."""
        self.sound, self.labels, self.spelling = sound, labels, spelling
        self._sums: dict[int, tuple[Column, Column]] = {}
        self._groups: dict[str, tuple[Column, Column]] = {}
        self._begun = {"": 0.0}
        silence = np.concatenate(([0.0], self._sum(sound.blank)[1]))
        self._never = np.full(sound.slots + 1, NEVER)
        self._nodes = {"": _Node((_Edge(-1, "", self._never, silence, silence),), silence)}

    def node(self, text: str) -> _Node:
        """What is known of the place behind ``text``."""
        size = len(text)
        while text[:size] not in self._nodes:
            size -= 1
        for end in range(size + 1, len(text) + 1):
            self._nodes[text[:end]] = self._made(text[:end])
        return self._nodes[text]

    def _made(self, text: str) -> _Node:
        edges = []
        for size in range(1, min(self.spelling.longest, len(text)) + 1):
            label = self.labels.get(text[-size:])
            before = self._nodes[text[:-size]] if label is not None else None
            if label is not None and before is not None and before.edges:
                said = self._in_label(before.before(label), label)
                over = self._in_label(said, self.sound.blank)
                edges.append(_Edge(label, text[-size:], said, over, np.logaddexp(said, over)))
        return _Node(tuple(edges), _sum_of([edge.either for edge in edges]) if edges else self._never)

    def _in_label(self, before: Column, label: int) -> Column:
        """(N + 1,): one label for one slot or more, begun after ``before``; a running sum instead of a loop."""
        begun, ended = self._sum(label)
        out = np.empty_like(before)
        out[0] = NEVER
        np.add(np.logaddexp.accumulate(before[:-1] - begun), ended, out=out[1:])
        return out

    def _sum(self, label: int) -> tuple[Column, Column]:
        """(N,) of a path that stays in one label from the start, before each slot and after it."""
        if label not in self._sums:
            path = np.concatenate(([0.0], np.cumsum(self.sound.log_probs[:, label], dtype=np.float64)))
            self._sums[label] = path[:-1], path[1:]
        return self._sums[label]

    def whole(self, text: str) -> float:
        """That the clip says ``text`` and nothing else."""
        return float(self.node(text).total[-1])

    def begins(self, text: str) -> float:
        """That what the clip says begins with ``text``, which may end inside a label. 0 for nothing."""
        if text not in self._begun:
            self._begun[text] = self._beginning(text)
        return self._begun[text]

    def _beginning(self, text: str) -> float:
        self.node(text)
        chances = []
        for size in range(1, min(self.spelling.longest, len(text)) + 1):
            before, part = self._nodes[text[:-size]], text[-size:]
            if not before.edges:
                continue
            whole = [self.labels[part]] if part in self.labels else []
            said = [e.label for e in before.edges if len(e.writing) > size and e.writing.startswith(part)]
            for label in said + whole:  # a blank must stand before those said
                chances.append(before.before(label)[:-1] + self.sound.log_probs[:, label])
            if part in self.spelling.longer:
                chances.append(before.total[:-1] + self._group(part, said))
        return _log_sum(chances)

    def _group(self, part: str, but: Sequence[int]) -> Column:
        """(N,) of all labels that begin with ``part`` and go on, ``but`` some."""
        if part not in self._groups:
            shares = self.sound.shares[:, self.spelling.longer[part]].sum(1, dtype=np.float64)
            self._groups[part] = shares, _log(shares)
        rest, logs = self._groups[part]
        if not but:
            return logs
        for label in but:
            rest = rest - self.sound.shares[:, label]
        return _log(rest)

    def joined(self, text: str, behind: str, backwards: "Lattice") -> float:
        """That the clip says ``text`` and then ``behind``. ``backwards``: a lattice of the reversed sound.

        A path crosses the seam at the end of a label or inside one.
        """
        if not text or not behind:
            return backwards.whole((text + behind)[::-1]) if not text else self.whole(text)
        most, mirrored = self.spelling.longest, behind[::-1]
        ended = {edge.label: edge.said for edge in self.node(text).edges}
        backwards.node(mirrored)
        chances = []
        for start in range(max(0, len(text) - most), len(text)):
            before = self._nodes[text[:start]]
            for over in range(min(start + most - len(text), len(behind)) + 1 if before.edges else 0):
                label = self.labels.get(text[start:] + behind[:over])
                if label is not None:
                    said = self._in_label(before.before(label), label) if over else ended[label]
                    after = backwards._nodes[mirrored[: len(behind) - over]].before(label)[::-1]
                    chances.append(said[1:] + after[1:])
        return _log_sum(chances)


def _sum_of(columns: Sequence[Column]) -> Column:
    """The sum of numbers given by their logarithms, slot by slot."""
    return reduce(np.logaddexp, columns)


def _log_sum(columns: Sequence[Column]) -> float:
    """The sum of all numbers of some columns, in logarithms."""
    if not columns or not len(columns[0]):
        return NEVER
    numbers = np.concatenate(columns)
    most = float(numbers.max())
    return max(NEVER, most + math.log(float(np.exp(numbers - most).sum())))


def _log(shares: Column) -> Column:
    """Their logarithms; 0 has one that is finite."""
    return np.log(np.maximum(shares, 1e-300))


def both_ways(sound: Sound, spelling: Spelling) -> tuple[Lattice, Lattice]:
    """A lattice of the clip, and one of the clip reversed, for reversed texts."""
    return Lattice(sound, spelling.labels, spelling), Lattice(sound.reversed(), spelling.mirrored, spelling)
