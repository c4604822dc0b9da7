"""A transcript in, subtitle cues out: which pieces stand on the screen together, and on which line.

Lines are measured in columns (Unicode Standard Annex 11: a Chinese character is two wide).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from diffasr.errors import OptionError
from diffasr.formats.pieces import Piece, pieces_of
from diffasr.transcript import Transcript

SCREEN_COLUMNS = 42
SCREEN_LINES = 2
LONGEST_MS = 7_000
"""No cue stays longer, but for a single piece."""
PAUSE_MS = 1_000
"""A silence that ends a cue where a shape is asked for."""
GLANCE_MS = 1_000
"""A sentence that is over sooner shares its cue with the next."""
TITLES = frozenset(("Dr", "Mr", "Mrs", "Ms", "Prof", "St", "Hr", "Fr", "Sr", "Sra", "Mme", "Mlle", "Nr", "No"))
"""Their full stop ends no sentence."""


@dataclass(frozen=True, kw_only=True)
class LineShape:
    """How large a cue may grow. With all limits None a cue is a segment on one line, cut only where that is unreadable.

    With any limit a cue also ends at sentence ends and pauses. A piece that is wider than a line stands on it alone.
    """

    max_line_width: int | None = None
    """Columns of a line; a Chinese character fills two. None: those of a television where another limit is given."""
    max_line_count: int | None = None
    """Lines of a cue. None: two, or one where ``max_words_per_line`` is given."""
    max_words_per_line: int | None = None
    """Words of a line, in Mandarin characters. None: as many as fit."""
    highlight_words: bool = False
    """Mark the word that is being said: underlined in srt and vtt, with a stamp of its own in lrc."""

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} must be a whole number of at least 1, or None for the default, got {value}")

    @property
    def is_asked(self) -> bool:
        """Whether any limit is given."""
        return not (self.max_line_width is self.max_line_count is self.max_words_per_line is None)

    @property
    def columns(self) -> int:
        """The width that a line is held to."""
        return self.max_line_width or (SCREEN_COLUMNS if self.is_asked else SCREEN_COLUMNS * SCREEN_LINES)

    @property
    def lines(self) -> int:
        """The number of lines that a cue is held to."""
        return self.max_line_count or (1 if self.max_words_per_line or not self.is_asked else SCREEN_LINES)


@dataclass(frozen=True, kw_only=True)
class Cue:
    """What stands on the screen at a time: one or more lines of one or more pieces."""

    lines: tuple[tuple[Piece, ...], ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Those of all lines."""
        return tuple(piece for line in self.lines for piece in line)

    @property
    def start_ms(self) -> int:
        """When its first piece begins."""
        return self.lines[0][0].start_ms

    @property
    def end_ms(self) -> int:
        """When its last piece ends."""
        return self.lines[-1][-1].end_ms


def cues_of(transcript: Transcript, shape: LineShape) -> list[Cue]:
    """The cues of a transcript in the order of time; none overlaps the next."""
    segments = [pieces for pieces in pieces_of(transcript) if pieces]
    runs = [run for pieces in segments for run in (_sentences(pieces) if shape.is_asked else [pieces])]
    return [Cue(lines=_lines(part, shape)) for run in runs for part in _parts(run, shape)]


def _sentences(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Cut at pauses, and at the end of a sentence that was long enough to be read."""
    runs: list[list[Piece]] = [[]]
    for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
        runs[-1].append(piece)
        if after is None:
            break
        was_read = piece.end_ms - runs[-1][0].start_ms >= GLANCE_MS
        if after.start_ms - piece.end_ms >= PAUSE_MS or (was_read and _ends_sentence(piece, after)):
            runs.append([])
    return runs


def _ends_sentence(piece: Piece, after: Piece) -> bool:
    core = piece.text.rstrip("\"'”’»›“)]」』）】 ")
    if not core.endswith("."):
        return core.endswith(tuple("!?…。！？｡।॥"))
    word = core.strip("\"'“‘«»„([.")
    is_short = len(word) == 1 or (word.isdigit() and len(word) < 3) or word in TITLES  # an initial, a German ordinal
    return not is_short and not after.text[0].islower()


def _parts(run: Sequence[Piece], shape: LineShape) -> list[Sequence[Piece]]:
    """Cut a run until every part fits the shape."""
    parts, todo = [], [run]
    while todo:
        part = todo.pop()
        is_short = len(part) == 1 or part[-1].end_ms - part[0].start_ms <= LONGEST_MS
        if is_short and len(_wrapped(part, shape.columns, shape.max_words_per_line)) <= shape.lines:
            parts.append(part)
        else:
            cut = _best_cut(part, shape)
            todo += [part[cut:], part[:cut]]
    return parts


def _best_cut(part: Sequence[Piece], shape: LineShape) -> int:
    """Where to divide what is too long: at the end of a sentence, a pause or a clause, and near to equal shares."""
    ends = list(accumulate(piece.width + piece.has_space for piece in part))
    words = shape.max_words_per_line
    needed = max(
        2,
        _needed(ends[-1], shape),
        ceil((part[-1].end_ms - part[0].start_ms) / LONGEST_MS),
        ceil(len(part) / (words * shape.lines)) if words else 0,
    )
    share = needed // 2 / needed  # an odd number of parts is not halved

    def worth(cut: int) -> float:
        piece, after, width = part[cut - 1], part[cut], ends[cut - 1]
        stop = 0.5 if _ends_sentence(piece, after) else 0.25 if piece.text[-1] in ",;:，；：、—–" else 0.0
        pause = min(1.0, (after.start_ms - piece.end_ms) / PAUSE_MS) / 2
        more = max(0, _needed(width, shape) + _needed(ends[-1] - width, shape) - needed)
        return stop + pause - 0.4 * more - abs(width / max(1, ends[-1]) - share)

    return max(range(1, len(part)), key=worth)


def _needed(width: int, shape: LineShape) -> int:
    """How many cues hold so many columns, at least; between two lines a space is lost."""
    return ceil((width + 1) / ((shape.columns + 1) * shape.lines))


def _wrapped(pieces: Sequence[Piece], columns: int, words: int | None) -> list[list[Piece]]:
    """Fill one line after the other."""
    lines: list[list[Piece]] = []
    width = 0
    for piece in pieces:
        wider = width + piece.has_space + piece.width
        if lines and wider <= columns and (words is None or len(lines[-1]) < words):
            lines[-1].append(piece)
            width = wider
        else:
            lines.append([piece])
            width = piece.width
    return lines


def _lines(pieces: Sequence[Piece], shape: LineShape) -> tuple[tuple[Piece, ...], ...]:
    """As few lines as will do, and these of like width: the narrowest column that needs no more."""
    words = shape.max_words_per_line
    count = len(_wrapped(pieces, shape.columns, words))
    columns = bisect_left(range(shape.columns), True, key=lambda c: len(_wrapped(pieces, c, words)) <= count)
    return tuple(tuple(line) for line in _wrapped(pieces, columns, words))
