"""How likely CTC finds a text, however it is spelled in labels.

CTC's labels are short and a text can be cut into them in many ways. The forward pass here runs over all of them: a
node is a place in the text, an edge a label that is written from one place to another. Graves et al., ICML 2006,
section 4.1, for one spelling; the prefix probability is that of Graves, Supervised Sequence Labelling (2012),
section 7.5. All numbers are natural logarithms, and everything that was computed for a text is kept, so that another
one that begins alike costs only what differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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
    said: Column
    """(N + 1,) that the text up to here is over after so many slots, the last of them in this label."""
    over: Column
    """(N + 1,) the same with the last of them in a blank."""

    @property
    def either(self) -> Column:
        return np.logaddexp(self.said, self.over)


@dataclass(frozen=True)
class _Node:
    """A place of the text: every label that may end there, and their sum."""

    edges: tuple[_Edge, ...]
    total: Column

    def before(self, label: int) -> Column:
        """(N + 1,) that ``label`` may begin next: behind the same label only after a blank."""
        if all(edge.label != label for edge in self.edges):
            return self.total
        parts = [edge.over if edge.label == label else edge.either for edge in self.edges]
        return np.logaddexp.reduce(parts)


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
        self._sums: dict[int, Column] = {}
        self._groups: dict[str, Column] = {}
        self._begun = {"": 0.0}
        silence = self._sum(sound.blank)
        self._nodes = {"": _Node((_Edge(-1, np.full(sound.slots + 1, NEVER), silence),), silence)}

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
                edges.append(_Edge(label, said, self._in_label(said, self.sound.blank)))
        if not edges:
            return _Node((), np.full(self.sound.slots + 1, NEVER))
        return _Node(tuple(edges), np.logaddexp.reduce([edge.either for edge in edges]))

    def _in_label(self, before: Column, label: int) -> Column:
        """(N + 1,): one label for one slot or more, begun after ``before``; a running sum instead of a loop."""
        path, out = self._sum(label), np.full(len(before), NEVER)
        out[1:] = np.logaddexp.accumulate(before[:-1] - path[:-1]) + path[1:]
        return out

    def _sum(self, label: int) -> Column:
        """(N + 1,) of a path that stays in one label from the start."""
        if label not in self._sums:
            self._sums[label] = np.concatenate(([0.0], np.cumsum(self.sound.log_probs[:, label], dtype=np.float64)))
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
        first = NEVER
        for size in range(1, min(self.spelling.longest, len(text)) + 1):
            before, part = self._nodes[text[:-size]], text[-size:]
            if not before.edges:
                continue
            longer = self.spelling.longer.get(part, ())
            said = {edge.label for edge in before.edges} & {*longer}  # a blank must stand before these
            alone = said | ({self.labels[part]} if part in self.labels else set())
            chances = [before.before(label)[:-1] + self.sound.log_probs[:, label] for label in alone]
            if longer:
                chances.append(before.total[:-1] + self._group(part, said))
            if chances:
                first = float(np.logaddexp(first, np.logaddexp.reduce(np.concatenate(chances))))
        return first

    def _group(self, part: str, but: set[int]) -> Column:
        """(N,) of all labels that begin with ``part`` and go on, ``but`` some."""
        if part not in self._groups:
            self._groups[part] = self.sound.shares[:, self.spelling.longer[part]].sum(1, dtype=np.float64)
        rest = self._groups[part]
        for label in but:
            rest = rest - self.sound.shares[:, label]
        return np.log(rest.clip(1e-300))

    def joined(self, text: str, behind: str, backwards: "Lattice") -> float:
        """That the clip says ``text`` and then ``behind``. ``backwards``: a lattice of the reversed sound.

        A path crosses the seam at the end of a label or inside one.
        """
        if not text or not behind:
            return backwards.whole((text + behind)[::-1]) if not text else self.whole(text)
        self.node(text)
        backwards.node(behind[::-1])
        most, found = self.spelling.longest, NEVER
        for start in range(max(0, len(text) - most), len(text)):
            before = self._nodes[text[:start]]
            for over in range(min(start + most - len(text), len(behind)) + 1):
                label = self.labels.get(text[start:] + behind[:over])
                if label is None or not before.edges:
                    continue
                said = self._in_label(before.before(label), label)
                after = backwards._nodes[behind[over:][::-1]].before(label)[::-1]
                found = float(np.logaddexp(found, np.logaddexp.reduce(said[1:] + after[1:])))
        return found


def both_ways(sound: Sound, spelling: Spelling) -> tuple[Lattice, Lattice]:
    """A lattice of the clip, and one of the clip reversed, for reversed texts."""
    return Lattice(sound, spelling.labels, spelling), Lattice(sound.reversed(), spelling.mirrored, spelling)
