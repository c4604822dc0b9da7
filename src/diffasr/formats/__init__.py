"""A transcript in, the text of a file out; and a way to write that file whole or not at all.

Subtitles and tables have one entry a cue (``formats.cues``), ctm and the second tier of a TextGrid one a piece
(``formats.pieces``). Times are whole milliseconds until they are written. Where a format cannot hold a character in
any way, a like one stands for it.
"""

import csv
import html
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from diffasr.errors import OptionError
from diffasr.formats.cues import Cue, LineShape, cues_of
from diffasr.formats.pieces import Piece, Span, clean, joined, last_ms, milliseconds, pieces_of, spread
from diffasr.transcript import Transcript

__all__ = ["FORMATS", "Format", "LineShape", "render", "write_text_atomically"]

Format: TypeAlias = Literal["txt", "json", "srt", "vtt", "tsv", "ctm", "textgrid", "lrc"]
FORMATS: tuple[str, ...] = get_args(Format)

SRT_LOOKALIKES = str.maketrans("<>{}", "‹›()")
"""Players read these as tags and know no escape."""
LRC_LOOKALIKES = str.maketrans("<>[]", "‹›()")


PLAIN = LineShape()


def render(transcript: Transcript, format: Format, shape: LineShape = PLAIN) -> str:
    """Write a transcript as ``format``; what is not empty ends with a newline.

    txt: the text alone. json: ``Transcript.to_dict``, readable letters rather than escapes. srt, vtt, tsv, lrc: cues in
    ``shape``, which the other formats have no use for. ctm: a line a word. textgrid: Praat's long text format.
    A recording without words is an empty file in srt and ctm. Raises OptionError for another format.
    """
    match format:
        case "txt":
            text = transcript.text.rstrip("\n") + "\n"
        case "json":
            text = json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        case "srt":
            text = _srt(transcript, shape)
        case "vtt":
            text = _vtt(transcript, shape)
        case "tsv":
            text = _tsv(transcript, shape)
        case "ctm":
            text = _ctm(transcript)
        case "textgrid":
            text = _textgrid(transcript)
        case "lrc":
            text = _lrc(transcript, shape)
        case _:
            raise OptionError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return text


def _srt(transcript: Transcript, shape: LineShape) -> str:
    shown = _shown(transcript, shape, lambda text: text.translate(SRT_LOOKALIKES))
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, ((start, end), text) in enumerate(shown, 1)
    )


def _vtt(transcript: Transcript, shape: LineShape) -> str:
    """W3C WebVTT: a text is escaped as in HTML."""
    shown = _shown(transcript, shape, lambda text: html.escape(text, quote=False))
    return "WEBVTT\n" + "".join(
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n" for (start, end), text in shown
    )


def _tsv(transcript: Transcript, shape: LineShape) -> str:
    """Start and end in milliseconds, and the text; quoted like spreadsheets do where it holds a quote."""
    out = io.StringIO()
    rows = csv.writer(out, dialect="excel-tab", lineterminator="\n")
    rows.writerow(("start", "end", "text"))
    rows.writerows((cue.start_ms, cue.end_ms, joined(cue.pieces)) for cue in cues_of(transcript, shape))
    return out.getvalue()


def _ctm(transcript: Transcript) -> str:
    """NIST's time-marked conversation: recording, channel, start, duration, word, confidence."""
    pieces = [piece for segment in pieces_of(transcript) for piece in segment]
    return "".join(
        f"recording 1 {_seconds(p.start_ms)} {_seconds(p.end_ms - p.start_ms)} "
        f"{p.text.replace(' ', '')} {p.probability:.4f}\n"
        for p in pieces
    )


def _textgrid(transcript: Transcript) -> str:
    """A tier of segments and a tier of words, each from the start of the recording to its end without a hole."""
    said = [s for s in transcript.segments if clean(s.text)]
    times = spread([(milliseconds(s.start), milliseconds(s.end)) for s in said], last_ms(transcript))
    words = [((p.start_ms, p.end_ms), p.text) for pieces in pieces_of(transcript) for p in pieces]
    end = max(1, last_ms(transcript), len(words))  # Praat refuses a tier without length
    head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {_seconds(end)}"]
    tiers = [
        *_tier(1, "segments", [(t, clean(s.text)) for t, s in zip(times, said, strict=True)], end),
        *_tier(2, "words", words, end),
    ]
    return "\n".join([*head, "tiers? <exists>", "size = 2", "item []:", *tiers]) + "\n"


def _tier(number: int, name: str, marks: Sequence[tuple[Span, str]], end: int) -> list[str]:
    """An interval tier; what lies between the marks is an interval without text."""
    full: list[tuple[Span, str]] = []
    free = 0
    for (start, until), text in [*marks, ((end, end), "")]:
        if free < start:
            full.append(((free, start), ""))
        if start < until:
            full.append(((start, until), text))
        free = until
    lines = [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
    lines += ["        xmin = 0", f"        xmax = {_seconds(end)}", f"        intervals: size = {len(full)}"]
    for n, ((start, until), text) in enumerate(full, 1):
        quoted = text.replace('"', '""')
        lines += [f"        intervals [{n}]:", f"            xmin = {_seconds(start)}"]
        lines += [f"            xmax = {_seconds(until)}", f'            text = "{quoted}"']
    return lines


def _lrc(transcript: Transcript, shape: LineShape) -> str:
    """A stamp before each line, in hundredths; before each word too, and behind the last, where words are marked."""
    out = ["[re:diffasr]", f"[length:{_stamp(_hundredths(last_ms(transcript)))}]"]
    at = -1
    for line in (line for cue in cues_of(transcript, shape) for line in cue.lines):
        at = max(at + 1, _hundredths(line[0].start_ms))  # two lines with one stamp would be one line twice
        out.append(f"[{_stamp(at)}]" + (_sung(line, at) if shape.highlight_words else _lyric(joined(line))))
    return "\n".join(out) + "\n"


def _sung(line: Sequence[Piece], begin: int) -> str:
    """A line with a stamp at each word, none of them before the line's own."""
    text = ""
    for n, piece in enumerate(line):
        stamp = _stamp(max(begin, _hundredths(piece.start_ms)))
        text += " " * (piece.has_space and n > 0) + f"<{stamp}>{_lyric(piece.text)}"
    return text + f"<{_stamp(max(begin, _hundredths(line[-1].end_ms)))}>"


def _lyric(text: str) -> str:
    return text.translate(LRC_LOOKALIKES)


def _shown(transcript: Transcript, shape: LineShape, escape: Callable[[str], str]) -> list[tuple[Span, str]]:
    """What stands on the screen and when: a cue, or the cue once for each word that is said, with that word marked."""
    shown: list[tuple[Span, str]] = []
    for cue in cues_of(transcript, shape):
        if not shape.highlight_words:
            shown.append(((cue.start_ms, cue.end_ms), _body(cue, escape, None)))
            continue
        edges = [*(piece.start_ms for piece in cue.pieces), cue.end_ms]
        shown += [((edges[n], edges[n + 1]), _body(cue, escape, n)) for n in range(len(cue.pieces))]
    return shown


def _body(cue: Cue, escape: Callable[[str], str], marked: int | None) -> str:
    """The lines of a cue, one piece of it underlined or none."""
    lines, number = [], 0
    for line in cue.lines:
        text = ""
        for piece in line:
            word = f"<u>{escape(piece.text)}</u>" if number == marked else escape(piece.text)
            text += " " * (piece.has_space and piece is not line[0]) + word
            number += 1
        lines.append(text)
    return "\n".join(lines)


def _clock(ms: int, point: str) -> str:
    """hours:minutes:seconds, then ``point`` and the milliseconds; more than 99 hours take a third digit."""
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _seconds(ms: int) -> str:
    return f"{ms // 1000}.{ms % 1000:03}"


def _hundredths(ms: int) -> int:
    return (ms + 5) // 10


def _stamp(hundredths: int) -> str:
    """minutes:seconds.hundredths; an hour is sixty minutes."""
    return f"{hundredths // 6000:02}:{hundredths // 100 % 60:02}.{hundredths % 100:02}"


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8: a reader, or a crash, sees the old file or the new one.

    Raises OptionError when the folder is missing or cannot be written to; the old file is then untouched.
    """
    target = Path(path).resolve()  # through a link: the link stays, what it points to is replaced
    data = text.encode()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")  # same folder: replacing cannot cross disks
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with no content
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose a folder that exists, may be written to and has room"
        raise OptionError(f"cannot write {path}: {reason}; {remedy}") from error
    finally:
        draft.unlink(missing_ok=True)
