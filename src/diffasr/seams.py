"""Two texts of one stretch of sound in, one text out: no word lost, none doubled.

Where speech has no pause, windows overlap, and each hears the words at its own edge badly. Their words are aligned by
time and by letters, and the texts change over at a pair that both heard, as far from either edge as there is one.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import TypeAlias

import numpy as np

from diffasr.transcript import Gap, Segment, Word

_FAR = 1.0  # seconds between two hearings of one word that make it two
_UNLIKE = 0.5  # of two words whose letters are less alike, neither is the other
_SKIP = 0.6  # cost of a word that the other window did not hear; a pair costs up to 2


Piece: TypeAlias = Segment | Gap


def sew(left: Piece, right: Piece) -> tuple[Piece, Piece]:
    """Two windows that share some sound, so that neither time nor words are in both."""
    start, end = right.start, left.end
    if isinstance(left, Gap):
        return replace(left, end=max(left.start, min(start, end))), right
    if isinstance(right, Gap):
        return left, replace(right, start=min(end, right.end))
    if not left.words or not right.words:
        middle = (start + end) / 2
        return replace(left, end=middle), replace(right, start=middle)
    keep, go_on = change_over(left.words, right.words, start, end)
    edges = [*(w.end for w in left.words[keep - 1 : keep]), *(w.start for w in right.words[go_on : go_on + 1])]
    seam = min(max(sum(edges) / len(edges), start), end) if edges else (start + end) / 2
    return _part(left, 0, keep, left.start, seam), _part(right, go_on, len(right.words), seam, right.end)


def _part(segment: Segment, first: int, last: int, start: float, end: float) -> Piece:
    """Words ``first`` to before ``last`` of a segment, as one from ``start`` to ``end``."""
    if first >= last:
        return Gap(start=start, end=end, reason="no text")
    words = tuple(
        replace(w, start=min(max(w.start, start), end), end=min(max(w.end, start), end))
        for w in segment.words[first:last]
    )
    text = cut_text(segment.text, segment.words, first, last)
    others = segment.alternatives if len(words) == len(segment.words) else ()
    return replace(segment, start=start, end=end, text=text, words=words, alternatives=others)


def change_over(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> tuple[int, int]:
    """How many words of ``left`` to keep, and from which word of ``right`` to go on.

    left, right: in seconds of the recording, which both windows hear from ``start`` to ``end``.
    """
    first = next((n for n, word in enumerate(left) if word.end > start), len(left))
    last = next((n for n, word in enumerate(right) if word.start >= end), len(right))
    middle = (start + end) / 2
    anchors = [(first + i, j) for i, j in _pairs(left[first:], right[:last])]
    if not anchors:
        keep = sum(_centre(word) < middle for word in left)
        return keep, next((j for j, word in enumerate(right) if _centre(word) >= middle), len(right))
    i, j = min(anchors, key=lambda pair: abs(_centre(left[pair[0]]) + _centre(right[pair[1]]) - 2 * middle))
    is_nearer_to_start = _centre(left[i]) + _centre(right[j]) < 2 * middle  # which is the right one's edge
    return (i + 1, j + 1) if is_nearer_to_start else (i, j)


def _centre(word: Word) -> float:
    return (word.start + word.end) / 2


def _pairs(left: Sequence[Word], right: Sequence[Word]) -> list[tuple[int, int]]:
    """Words that are the same one, by the alignment of least cost."""
    cost = np.zeros((len(left) + 1, len(right) + 1))
    cost[1:, 0] = _SKIP * np.arange(1, len(left) + 1)
    cost[0, 1:] = _SKIP * np.arange(1, len(right) + 1)
    both = np.array([[_difference(a, b) for b in right] for a in left]).reshape(len(left), len(right))
    for i in range(1, len(left) + 1):
        for j in range(1, len(right) + 1):
            skipped = min(cost[i - 1, j], cost[i, j - 1]) + _SKIP
            cost[i, j] = min(skipped, cost[i - 1, j - 1] + both[i - 1, j - 1])
    found, i, j = [], len(left), len(right)
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + both[i - 1, j - 1]:
            i, j = i - 1, j - 1
            found.append((i, j))
        elif cost[i, j] == cost[i - 1, j] + _SKIP:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _difference(a: Word, b: Word) -> float:
    """0: the same letters at the same time; infinite: two words."""
    apart = abs(_centre(a) - _centre(b)) / _FAR
    alike = SequenceMatcher(None, _letters(a.word), _letters(b.word), autojunk=False).ratio()
    return np.inf if apart > 1 or alike < _UNLIKE else apart + 1 - alike


def _letters(word: str) -> str:
    plain = "".join(c for c in word.casefold() if c.isalnum())
    return plain or word


def cut_text(text: str, words: Sequence[Word], first: int, last: int) -> str:
    """The part of ``text`` that words ``first`` to before ``last`` of its ``words`` say, with its own spaces."""
    if first >= last:
        return ""
    edges, place = [], 0
    for word in words:
        begin = text.find(word.word, place)
        if begin < 0:
            return " ".join(w.word for w in words[first:last])
        place = begin + len(word.word)
        edges.append((begin, place))
    return text[edges[first][0] : edges[last - 1][1]]
