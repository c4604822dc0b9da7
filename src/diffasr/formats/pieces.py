"""A transcript in, timed pieces out: what no line break may divide, and when it was said.

A piece is a word, or a Mandarin character, with its punctuation. It has the time of the words that it was heard as; one
that was not heard shares the time between its neighbours. All times are whole milliseconds.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import accumulate, pairwise
from math import exp

from diffasr.transcript import Segment, Transcript, Word

Span = tuple[int, int]
"""Start and end in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What no line break may divide."""

    text: str
    has_space: bool
    """Whether a space parts it from the piece before."""
    start_ms: int
    end_ms: int
    probability: float
    """Of its least certain word, in [0, 1]; of the segment's mean token where none was heard."""

    @cached_property
    def width(self) -> int:
        """Columns on the screen."""
        from wcwidth import wcswidth  # its tables take a while to load, and plain text needs none

        return max(0, wcswidth(self.text))


def pieces_of(transcript: Transcript) -> list[list[Piece]]:
    """The pieces of each segment; together they rise in time without overlap and end with the recording.

    A segment whose text is white space has none.
    """
    units = [_units(segment.text) for segment in transcript.segments]
    heard = [_heard(u, segment) for u, segment in zip(units, transcript.segments, strict=True)]
    placed = iter(spread([span for spans, _ in heard for span in spans], last_ms(transcript)))
    return [
        [
            Piece(text=u.text, has_space=u.has_space, start_ms=start, end_ms=end, probability=p)
            for u, p, (start, end) in zip(mine, chances, [next(placed) for _ in mine], strict=True)
        ]
        for mine, (_, chances) in zip(units, heard, strict=True)
    ]


def milliseconds(seconds: float) -> int:
    """The nearest whole number of milliseconds, so that no rounding is left to whoever writes it."""
    return round(seconds * 1000)


def last_ms(transcript: Transcript) -> int:
    """Where the recording ends, or its last segment if that claims to be later."""
    return max(milliseconds(end) for end in (transcript.duration, *(s.end for s in transcript.segments)))


def spread(spans: Sequence[Span], limit: int) -> list[Span]:
    """Move spans so that each lasts 1 ms or more, begins once the one before is over, and ends by ``limit``.

    Where the limit has no room for 1 ms each, they end at their number.
    """
    if not spans:
        return []
    starts = list(accumulate((start for start, _ in spans), max))
    placed: list[Span] = []
    free = 0
    for start, until, (_, end) in zip(starts, [*starts[1:], limit], spans, strict=True):
        begin = max(start, free)
        free = max(begin + 1, min(end, until))
        placed.append((begin, free))
    room = max(limit, len(placed))
    for n in reversed(range(len(placed))):
        end = min(placed[n][1], room)
        room = min(placed[n][0], end - 1)
        placed[n] = room, end
    return placed


def joined(pieces: Sequence[Piece]) -> str:
    """Their text in a row."""
    return "".join(" " * (piece.has_space and n > 0) + piece.text for n, piece in enumerate(pieces))


def clean(text: str) -> str:
    """Composed characters, single spaces, and no control characters."""
    composed = " ".join(unicodedata.normalize("NFC", text).split())
    return " ".join("".join(c for c in composed if unicodedata.category(c) not in {"Cc", "Cs"}).split())


@dataclass
class _Unit:
    """A piece that has no time yet."""

    atoms: list[str]
    text: str
    has_space: bool


def _units(text: str) -> list[_Unit]:
    """Cut a text where a line may break."""
    units: list[_Unit] = []
    for chunk in clean(text).split():
        atoms = _atoms(chunk)
        for n, atom in enumerate(atoms):
            if not units:
                units.append(_Unit([atom], atom, False))
                continue
            last = units[-1]
            has_space = n == 0 and not (_is_wide(last.text[-1]) and _is_wide(atom[0]))
            if _may_break(last, atom, atoms, is_first=n == 0):
                units.append(_Unit([atom], atom, has_space))
            else:
                last.atoms.append(atom)
                last.text += " " * has_space + atom
    return units


def _may_break(last: _Unit, atom: str, chunk: Sequence[str], *, is_first: bool) -> bool:
    """Whether a line may end between a unit and the next atom, which ``is_first`` of its chunk or stands close."""
    if is_first:  # French puts a space before "?" and behind an opening quote
        return not (all(map(_is_closing, chunk)) or all(map(_is_opening, last.atoms)))
    # two atoms back and no further, or the digits of （3.5） would part
    touches_wide = _is_wide(atom[0]) or any(_is_wide(a[0]) for a in last.atoms[-2:])
    return touches_wide and not _is_closing(atom) and not _is_opening(last.atoms[-1])


def _atoms(chunk: str) -> list[str]:
    """Text without white space as single wide characters, single marks of punctuation, and runs of all others."""
    atoms: list[str] = []
    for char in chunk:
        is_mark = unicodedata.category(char)[0] == "M"
        if atoms and (is_mark or not (_stands_alone(char) or _stands_alone(atoms[-1][0]))):
            atoms[-1] += char
        else:
            atoms.append(char)
    return atoms


def _stands_alone(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" or _is_wide(char)


def _is_wide(char: str) -> bool:
    """Of a script that is written without spaces; Korean, as wide, is not."""
    is_korean = "\uac00" <= char <= "\ud7a3" or "\u1100" <= char <= "\u11ff"
    return unicodedata.east_asian_width(char) in "WF" and unicodedata.category(char)[0] in "LNP" and not is_korean


def _is_closing(atom: str) -> bool:
    return unicodedata.category(atom[0]) in {"Pe", "Pf", "Pd", "Po"} and atom not in set("&@#*/\\§¿¡")


def _is_opening(atom: str) -> bool:
    return unicodedata.category(atom[0]) in {"Ps", "Pi"} or atom in {"¿", "¡"}


def _heard(units: Sequence[_Unit], segment: Segment) -> tuple[list[Span], list[float]]:
    """When each unit was said and how sure that is, by the longest runs that text and words have in common."""
    written = [(atom, number) for number, unit in enumerate(units) for atom in unit.atoms]
    said = [part for word in segment.words for part in _said(word)]
    spans: list[Span | None] = [None] * len(units)
    chances = [1.0] * len(units)
    for first, second, size in _common([atom for atom, _ in written], [atom for atom, _, _ in said]):
        for (_, number), (_, (start, end), chance) in zip(
            written[first : first + size], said[second : second + size], strict=True
        ):
            old = spans[number] or (start, end)
            spans[number] = min(old[0], start), max(old[1], end)
            chances[number] = min(chances[number], chance)
    unheard = exp(segment.avg_logprob)
    chances = [chance if span else unheard for chance, span in zip(chances, spans, strict=True)]
    return _filled(spans, [len(u.text) for u in units], segment), chances


def _common(written: Sequence[str], said: Sequence[str]) -> list[tuple[int, int, int]]:
    """Where each longest run of both begins in either, and its length."""
    if written == said:  # as it should be; the search takes squared time
        return [(0, 0, len(said))]
    blocks = SequenceMatcher(None, written, said, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in blocks]


def _said(word: Word) -> list[tuple[str, Span, float]]:
    """The atoms of a word, its time shared out among its letters: a word from elsewhere may be several pieces."""
    atoms = [atom for chunk in clean(word.word).split() for atom in _atoms(chunk)]
    start, length = milliseconds(word.start), milliseconds(word.end) - milliseconds(word.start)
    shares = [0 if unicodedata.category(atom[0])[0] == "P" else len(atom) for atom in atoms]
    if not any(shares):
        shares = [1] * len(atoms)
    edges = [start + length * share // sum(shares) for share in accumulate(shares, initial=0)] if atoms else []
    return [(atom, span, word.probability) for atom, span in zip(atoms, pairwise(edges), strict=True)]


def _filled(spans: Sequence[Span | None], sizes: Sequence[int], segment: Segment) -> list[Span]:
    """Share the time between what was heard among what was not, by length of text."""
    filled = list(spans)
    before, first = milliseconds(segment.start), 0
    for n, span in enumerate([*spans, (milliseconds(segment.end),) * 2]):
        if span is None:
            continue
        gap = max(0, span[0] - before)
        edges = list(accumulate(sizes[first:n], initial=0))
        for place in range(first, n):
            begin, end = edges[place - first], edges[place - first + 1]
            filled[place] = before + gap * begin // edges[-1], before + gap * end // edges[-1]
        before, first = max(before, span[1]), n + 1
    return [span for span in filled if span is not None]
