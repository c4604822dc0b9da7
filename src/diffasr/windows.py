"""A recording in, the windows in which somebody speaks out, one after another while it is being read.

Silero's detector finds the speech. Windows are cut in its pauses, the longest near the length aimed at; speech without
a pause is cut into windows that overlap, whose texts ``diffasr.seams`` puts together. At no time is more of the
recording held than one window and what was read beyond it.

Joining two recordings joins their windows, sample by sample, where digital silence of ``pause_seconds`` is between them
(``diffasr.silence``): the detector starts anew there, and no window holds any of it. Where the silence is noise, the
detector remembers what it heard before and its frames begin elsewhere: windows may then begin and end a few hundredths
of a second earlier or later. Where it is shorter, one window may hold both; so it may without vad.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from diffasr.audio import MAX_SECONDS, SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, Source, split_at_silence, stream_blocks
from diffasr.errors import OptionError
from diffasr.silence import sounding
from diffasr.vad import FRAME, SpeechDetector

_CHUNK = 4 * SAMPLE_RATE_HZ  # heard at once: the detector is several times faster than block by block
_HYSTERESIS = 0.15  # speech ends where its probability falls this far below the threshold, as Silero has it
_PAUSE = 3  # frames, about 0.1 s, as Silero has it
_SHORTEST = 3  # frames of the shortest speech
_RANGES: dict[str, tuple[float, float]] = {
    "threshold": (0.001, 1),
    "window_seconds": (1, WINDOW_SECONDS),
    "longest_seconds": (1, WINDOW_SECONDS),
    "pause_seconds": (0.1, 3600),
    "margin_seconds": (0, 2),
    "no_speech": (0, 1),
    "compression_ratio": (0.1, math.inf),
    "repetition": (0, 1),
    "retries": (0, 100),
}


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What of a recording is listened to, and what of the answer is believed."""

    vad: bool = True
    """Decode only where the detector hears speech. Without, every second counts as speech."""
    threshold: float = 0.5
    """The probability of speech from which on the detector is believed."""
    window_seconds: float = 12.0
    """The length of windows that is aimed at. Without vad, the longest."""
    longest_seconds: float = 20.0
    """The longest window, where speech has no pause; below ``window_seconds`` it has no effect."""
    pause_seconds: float = 1.0
    """Silence that always ends a window."""
    margin_seconds: float = 0.3
    """Sound that a window keeps before and behind its speech."""
    overlap_seconds: float = 3.0
    """What two windows share where speech is cut without a pause."""
    max_seconds: float | None = MAX_SECONDS
    """Recordings longer than this are refused; None: none are."""
    context: bool = False
    """Show each window the text of the one before. One window at a time is decoded then; a gemma backbone can't."""
    no_speech: float = 0.8
    """A window is dropped when its ``no_speech_prob`` is above this."""
    compression_ratio: float = 2.4
    """A text that zlib shrinks by more than this, a byte a letter, is a loop: it is decoded again, then dropped."""
    repetition: float = 0.5
    """So is one of which more than this share repeats the words just before; see ``guard.repetition``."""
    retries: int = 1
    """How often a loop is decoded again, each time with another seed."""

    def __post_init__(self) -> None:
        ranges = _RANGES | {"overlap_seconds": (0, self.longest / 2)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise OptionError(f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)}")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise OptionError(f"max_seconds must be above 0 and finite, or None, got {self.max_seconds}")

    @property
    def longest(self) -> float:
        """Seconds that no window exceeds."""
        return max(self.longest_seconds, self.window_seconds)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of one recording in which somebody speaks; places are samples from its start."""

    start: int
    end: int
    samples: Samples
    """(end - start,)"""
    speech: tuple[tuple[int, int], ...]
    """Where the detector hears speech, in order."""
    speech_probability: float
    """The detector's mean there; 1 without a detector."""
    runs_on: bool = False
    """Speech goes on at its end: the next window begins before this one ends."""


class Windows:
    """The windows of one recording, read while they are asked for. Can be gone through once."""

    def __init__(self, source: Source, options: ListenOptions) -> None:
        self._source, self._options = source, options
        self._read = 0

    @property
    def seconds(self) -> float:
        """What has been read so far; at the end, the length of the recording."""
        return self._read / SAMPLE_RATE_HZ

    def __iter__(self) -> Iterator[Window]:
        """Raises AudioError where the recording can't be read any further."""
        blocks = self._counted(stream_blocks(self._source, max_seconds=self._options.max_seconds))
        yield from self._by_speech(blocks) if self._options.vad else self._by_loudness(blocks)

    def _counted(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self._read += len(block)
            yield block

    def _by_loudness(self, blocks: Iterable[Samples]) -> Iterator[Window]:
        """Every sample in one window, cut where it is quietest."""
        longest = self._options.window_seconds
        held: Samples = np.zeros(0, np.float32)
        start = 0
        for chunk in _gathered(blocks):
            held = np.concatenate((held, chunk))
            while len(held) > longest * SAMPLE_RATE_HZ:
                _, cut = split_at_silence(held, max_seconds=longest)[0]
                yield _whole(start, held[:cut])
                held, start = held[cut:], start + cut
        if len(held):
            yield _whole(start, held)

    def _by_speech(self, blocks: Iterable[Samples]) -> Iterator[Window]:
        shortest = min(self._options.pause_seconds, self._options.longest)  # no window goes over either
        part: _Part | None = None
        for chunk in sounding(_gathered(blocks), shortest=round(shortest * SAMPLE_RATE_HZ), size=_CHUNK):
            part = part or _Part(chunk.start, self._options)
            yield from part.windows(chunk.samples, is_last=chunk.is_last)
            part = None if chunk.is_last else part


def _gathered(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """The same in blocks of at least ``_CHUNK`` samples, the last excepted."""
    waiting: list[Samples] = []
    held = 0
    for block in blocks:
        waiting.append(block)
        held += len(block)
        if held >= _CHUNK:
            yield np.concatenate(waiting)
            waiting, held = [], 0
    if waiting:
        yield np.concatenate(waiting)


class _Part:
    """What lies between two digital silences: heard, and cut into windows, as if it were all of the recording."""

    def __init__(self, start: int, options: ListenOptions) -> None:
        self._detector, self._options = SpeechDetector(), options
        self._start, self._is_speaking = start, False  # of what is held
        self._held: Samples = np.zeros(0, np.float32)
        self._probabilities: Samples = np.zeros(0, np.float32)

    def windows(self, samples: Samples, *, is_last: bool) -> Iterator[Window]:
        """Those that (n,) further samples complete."""
        self._held = np.concatenate((self._held, samples))
        heard = [self._probabilities, self._detector.hear(samples)]
        self._probabilities = np.concatenate([*heard, self._detector.finish()] if is_last else heard)
        while (plan := self._plan(is_last)) is not None:
            if plan.spans:
                yield _window(self._start, self._held, self._probabilities, plan)
            self._held, self._probabilities = self._held[plan.forget * FRAME :], self._probabilities[plan.forget :]
            self._start, self._is_speaking = self._start + plan.forget * FRAME, plan.runs_on

    def _plan(self, is_last: bool) -> "Cut | None":
        return find_cut(self._probabilities, self._options, is_speaking=self._is_speaking, is_last=is_last)


def _whole(start: int, samples: Samples) -> Window:
    end = start + len(samples)
    return Window(start=start, end=end, samples=samples.copy(), speech=((start, end),), speech_probability=1.0)


def _window(start: int, held: Samples, probabilities: Samples, cut: "Cut") -> Window:
    """What a cut takes of the samples that are held from sample ``start`` of the recording on."""
    stretch = held[cut.first * FRAME : cut.last * FRAME].copy()  # the last frame may be filled up with silence
    begin = start + cut.first * FRAME
    end = begin + len(stretch)
    sure = np.concatenate([probabilities[first:last] for first, last in cut.spans])
    return Window(
        start=begin,
        end=end,
        samples=stretch,
        speech=tuple((start + first * FRAME, min(start + last * FRAME, end)) for first, last in cut.spans),
        speech_probability=float(sure.mean()),
        runs_on=cut.runs_on,
    )


@dataclass(frozen=True)
class Cut:
    """What to do with the frames that are held: take some, forget some. All are numbers of frames."""

    forget: int
    """Those before this one are not needed any more."""
    first: int = 0
    last: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    """The speech between ``first`` and ``last``; none: there is no window in them."""
    runs_on: bool = False


def find_speech(probabilities: Samples, threshold: float, *, is_speaking: bool) -> tuple[list[tuple[int, int]], bool]:
    """Stretches of speech in (n,) frames, and whether the last one may go on behind them.

    is_speaking: speech goes on from before the first frame.
    """
    low = max(threshold - _HYSTERESIS, 0.01)
    found: list[tuple[int, int]] = []
    begin, quiet = (0 if is_speaking else -1), 0
    for n, p in enumerate(probabilities.tolist()):
        if begin < 0:
            if p >= threshold:
                begin, quiet = n, 0
            continue
        quiet = quiet + 1 if p < low else 0
        if quiet == _PAUSE:
            end = n + 1 - _PAUSE
            if end - begin >= _SHORTEST or (is_speaking and begin == 0 and end):
                found.append((begin, end))
            begin = -1
    end = len(probabilities) - quiet
    return ([*found, (begin, end)], True) if 0 <= begin < end else (found, False)


def find_cut(probabilities: Samples, options: ListenOptions, *, is_speaking: bool, is_last: bool) -> Cut | None:
    """The next window in the frames that are held, (n,); None: more must be read first, or nothing is left.

    is_speaking: speech goes on from before the first frame. is_last: the recording ends behind the last.
    """
    size = len(probabilities)
    margin, pause = _frames(options.margin_seconds), _frames(options.pause_seconds)
    spans, is_open = find_speech(probabilities, options.threshold, is_speaking=is_speaking)
    if not spans:
        forget = size if is_last else size - margin - _SHORTEST
        return Cut(forget) if forget > 0 else None
    begin = 0 if is_speaking else max(0, spans[0][0] - margin)
    group = _group(spans, pause)
    is_closed = is_last or len(group) < len(spans) or (not is_open and size - group[-1][1] >= pause)
    following = spans[len(group)][0] if len(group) < len(spans) else size
    ends = [*(b for b, _ in group[1:]), following]  # where the silence behind each span ends
    # A window may end behind each span: a margin later, but no further than half of the silence.
    silences = [nxt - span[1] for span, nxt in zip(group, ends, strict=True)]
    lengths = [span[1] + min(margin, (silence + 1) // 2) - begin for span, silence in zip(group, silences, strict=True)]
    known = len(group) if is_closed else len(group) - 1
    bounds = _frames(options.window_seconds), _frames(options.longest)
    number = _choose(lengths[:known], silences, bounds, room=size - begin, is_closed=is_closed)
    if number is None:
        return None
    if number >= 0:
        last = begin + lengths[number]
        forget = max(last, ends[number] - margin) if number + 1 < len(spans) else last
        return Cut(forget, begin, last, tuple(group[: number + 1]))
    last = begin + bounds[1]
    inside = tuple((a, min(b, last)) for a, b in group if a < last)
    return Cut(last - _frames(options.overlap_seconds), begin, last, inside, runs_on=True)


def _frames(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE_HZ / FRAME)


def _group(spans: Sequence[tuple[int, int]], pause: int) -> list[tuple[int, int]]:
    """The first spans, up to a silence of ``pause`` frames."""
    group = [spans[0]]
    for span in spans[1:]:
        if span[0] - group[-1][1] >= pause:
            break
        group.append(span)
    return group


def _choose(
    lengths: Sequence[int], silences: Sequence[int], bounds: tuple[int, int], *, room: int, is_closed: bool
) -> int | None:
    """Behind which span a window ends; -1: it must be cut in the middle of speech; None: not known yet.

    lengths: of the window, were it to end there; silences: behind each span; bounds: what is aimed at, and the most;
    room: frames from the window's beginning.
    """
    aim, most = bounds
    if is_closed and lengths[-1] <= aim:
        return len(lengths) - 1
    if not is_closed and room < aim:
        return None
    near = [n for n, length in enumerate(lengths) if aim / 2 <= length <= aim]
    later = [n for n, length in enumerate(lengths) if aim < length <= most]
    early = [n for n, length in enumerate(lengths) if length < aim / 2]
    if near:
        return max(near, key=silences.__getitem__)
    if later:
        return later[0]
    if not is_closed and room < most:
        return None
    return max(early, key=silences.__getitem__) if early else -1
