"""A window's final text, CTC's logits and the sound in; its words, when they were said and the evidence for them out.

CTC puts each label at one audio token, 40 to 160 ms long, somewhere inside the sound that it stands for. Boundaries of
words lie between: at a silence that the sound's energy shows there, or else where it is weakest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.diffusion.align import Span, align
from diffasr.text import Tokenizer

LATE, EARLY = 0.045, 0.155
"""Seconds by which CTC's peaks come behind the start of a word and before its end: medians on half of the words of
``benchmarks/word_times.py``."""
_HOP = SAMPLE_RATE_HZ // 200  # samples of an energy
_SECONDS = _HOP / SAMPLE_RATE_HZ
_QUIET, _ABOVE_FLOOR, _LOUD = (
    10 ** (-35 / 20),
    2.0,
    10 ** (-10 / 20),
)  # amplitudes: of the speech, the noise, the speech
_SHORTEST_PAUSE = 10  # energies: a closure before p, t or k is shorter
_ENDING_PAUSE = 20  # after the last word, where a closure may be long
_REACH = 0.06  # how far from the middle the weakest place may lie
_MARGIN = 0.01  # seconds that a word keeps around its own peaks
_BEFORE, _BEHIND = 0.5, 0.7  # seconds at the window's ends in which the first word may begin and the last may end
_LEAST = -20.0  # nats: what is less likely counts alike


class Ballot(Protocol):
    """A text as the denoiser wrote it: its tokens and the log-probability of each, in nats."""

    @property
    def text(self) -> str:
        """The tokens read as text."""
        ...

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids, without the end."""
        ...

    @property
    def token_logprobs(self) -> tuple[float, ...]:
        """One a token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks for a word. Log-probabilities in nats, none below a floor."""

    letters: float = 0.0
    """CTC's for the word's labels, the mean."""
    weakest_letter: float = 0.0
    """The least of them."""
    written: float = 0.0
    """The denoiser's for the tokens of the word, the mean; over those votes that have the word."""
    weakest_token: float = 0.0
    """The least of them."""
    agreement: float = 1.0
    """Share of the votes that have the word."""


@dataclass(frozen=True, kw_only=True)
class HeardWord:
    """A word of the text, and the audio tokens that CTC puts its first and its last label to."""

    word: str
    first: int
    last: int
    probability: float
    """How sure CTC is of its letters: the geometric mean over its labels."""
    evidence: Evidence = Evidence()
    confidence: float | None = None
    """How likely it is right, from all evidence; None where there is nothing to go by but ``probability``."""

    @property
    def belief(self) -> float:
        """The confidence, or CTC's probability without one."""
        return self.probability if self.confidence is None else self.confidence


def place_words(
    tokenizer: Tokenizer, logits: NDArray[np.float32], text: str, language: str, *, ballots: Sequence[Ballot] = ()
) -> tuple[HeardWord, ...]:
    """The words of ``text`` in the order of time, by alignment to (N, C) CTC logits.

    ballots: the texts that ``text`` was elected from, or the one that it is. A text with more letters than N slots can
    hold is spread over them evenly, with probability 0.
    """
    slots = len(logits)
    labels = tokenizer.pieces(text)
    spans = align(logits, labels, blank=tokenizer.blank)
    words = tokenizer.words(text, language)
    spelled = [word for word, _, _ in words]
    found = [_matched(spelled, _scores(tokenizer, ballot, language)) for ballot in ballots]
    out = []
    for number, (word, first, last) in enumerate(words):
        mine = None if spans is None else spans[first : last + 1]
        if mine is None:
            start, end, sure = first * slots // len(labels), max(0, (last + 1) * slots // len(labels) - 1), 0.0
        else:
            start, end = mine[0].peak, mine[-1].peak  # a span may reach far into the silence beside it
            sure = math.exp(sum(s.log_probability for s in mine) / len(mine))
        evidence = _evidence(mine, [scores[number] for scores in found])
        out.append(
            HeardWord(word=word, first=start, last=max(start, end), probability=sure, evidence=evidence)
        )  # fmt: skip
    return tuple(out)


def _evidence(spans: Sequence[Span] | None, votes: Sequence[list[float] | None]) -> Evidence:
    """votes: the log-probabilities of the word's tokens in each vote, None where it has not got the word."""
    letters = [max(_LEAST, s.log_probability) for s in spans] if spans else [_LEAST]
    tokens = [max(_LEAST, score) for vote in votes if vote is not None for score in vote]
    if votes and not tokens:
        tokens = [_LEAST]  # elected letter by letter
    return Evidence(
        letters=sum(letters) / len(letters),
        weakest_letter=min(letters),
        written=sum(tokens) / len(tokens) if tokens else 0.0,
        weakest_token=min(tokens, default=0.0),
        agreement=sum(vote is not None for vote in votes) / len(votes) if votes else 1.0,
    )


def _scores(tokenizer: Tokenizer, ballot: Ballot, language: str) -> list[tuple[str, list[float]]]:
    """The words of a text, each with the log-probabilities of the tokens that hold any of its letters."""
    places = list(pairwise(accumulate((len(tokenizer.spell([token])) for token in ballot.tokens), initial=0)))
    found, done = [], 0
    for word, _, _ in tokenizer.words(ballot.text, language):
        size = len(tokenizer.spell(tokenizer.encode(word)))
        mine = [
            score
            for (start, end), score in zip(places, ballot.token_logprobs, strict=True)
            if start < done + size and end > done
        ]
        found.append((word, mine))
        done += size
    return found


def _matched(words: Sequence[str], scored: Sequence[tuple[str, list[float]]]) -> list[list[float] | None]:
    """For each of ``words`` the scores of its like among the words of a vote, None where there is none."""
    found: list[list[float] | None] = [None] * len(words)
    left, right = [w.casefold() for w in words], [w.casefold() for w, _ in scored]
    for a, b, size in SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks():
        for step in range(size):
            found[a + step] = scored[b + step][1]
    return found


def word_times(words: Sequence[HeardWord], samples: Samples, slot_seconds: float) -> list[tuple[float, float]]:
    """Start and end of each word in seconds of ``samples``, the window's sound at 16 kHz; in order, without overlap.

    slot_seconds: length of an audio token.
    """
    if not words:
        return []
    duration = len(samples) / SAMPLE_RATE_HZ
    level = _levels(samples)
    quiet = _is_quiet(level)
    peaks = [(min(w.first * slot_seconds, duration), min(w.last * slot_seconds, duration)) for w in words]
    peaks = _out_of_silence(peaks, quiet, duration)
    edges = [_onset(quiet, peaks[0][0])]
    for (_, before), (after, _) in pairwise(peaks):
        edges += _between(level, quiet, before, after)
    edges.append(min(_ending(quiet, peaks[-1][1]), duration))
    return list(zip(edges[::2], edges[1::2], strict=True))


def _levels(samples: Samples) -> NDArray[np.float64]:
    """Amplitude every 5 ms, each over 15 ms."""
    whole = np.square(samples[: len(samples) // _HOP * _HOP].astype(np.float64)).reshape(-1, _HOP).mean(1)
    return np.asarray(np.sqrt(np.convolve(whole, np.full(3, 1 / 3), "same"))) if len(whole) >= 3 else np.sqrt(whole)


def _is_quiet(level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the sound is far below the speech, or near the noise, whichever is louder."""
    if not len(level):
        return np.zeros(0, dtype=np.bool_)
    floor, speech = np.percentile(level, (5, 95))
    return np.asarray(level < max(speech * _QUIET, min(floor * _ABOVE_FLOOR, speech * _LOUD)))


def _pauses(quiet: NDArray[np.bool_], start: float, end: float) -> list[tuple[float, float]]:
    """The silences between two times, in seconds."""
    low, high = max(0, int(start / _SECONDS)), int(end / _SECONDS) + 1
    steps = np.diff(np.concatenate(([0], quiet[low:high].astype(np.int8), [0])))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return [((low + int(a)) * _SECONDS, (low + int(b)) * _SECONDS) for a, b in zip(starts, ends, strict=True)]


def _out_of_silence(
    peaks: Sequence[tuple[float, float]], quiet: NDArray[np.bool_], duration: float
) -> list[tuple[float, float]]:
    """The peaks, those in a long silence moved to where the word is heard, as far as their neighbours let them.

    CTC likes to put the first label of all into the silence before it.
    """
    pauses = [(a, b) for a, b in _pauses(quiet, 0.0, duration) if b - a >= (_ENDING_PAUSE - 0.5) * _SECONDS]
    opening = [(a, b) for a, b in pauses if b < duration - _SECONDS]
    closing = [(a, b) for a, b in pauses if a > 0]
    limits = [first for first, _ in peaks[1:]] + [duration]
    out: list[tuple[float, float]] = []
    for (first, last), following in zip(peaks, limits, strict=True):
        is_one, before = first == last, out[-1][1] if out else 0.0
        start = _later(first, opening, (following if is_one else last) - 2 * _MARGIN)
        if is_one:
            end = start = _earlier(start, [p for p in closing if p not in opening], before + 2 * _MARGIN)
        else:
            end = _earlier(last, closing, start + 2 * _MARGIN)
        out.append((start, end))
    return out


def _later(peak: float, pauses: Sequence[tuple[float, float]], limit: float) -> float:
    """Behind the silence that the peak is in, but not past ``limit``."""
    return next((max(peak, min(b + _MARGIN, limit)) for a, b in pauses if a <= peak < b), peak)


def _earlier(peak: float, pauses: Sequence[tuple[float, float]], limit: float) -> float:
    """Before the silence that the peak is in, but not before ``limit``."""
    return next((min(peak, max(a - _MARGIN, limit)) for a, b in pauses if a <= peak <= b + _SECONDS), peak)


def _onset(quiet: NDArray[np.bool_], peak: float) -> float:
    """Where the first word begins: behind the last silence before its peak."""
    found = [b for a, b in _pauses(quiet, peak - _BEFORE, peak) if b - a >= (_SHORTEST_PAUSE - 0.5) * _SECONDS]
    return max(0.0, min(found[-1], peak - _MARGIN) if found else peak - LATE)


def _ending(quiet: NDArray[np.bool_], peak: float) -> float:
    """Where the last word ends: at the first long silence behind its peak, or the one that the window ends with."""
    size = len(quiet) * _SECONDS
    for start, end in _pauses(quiet, peak, peak + _BEHIND):
        if end - start >= (_ENDING_PAUSE - 0.5) * _SECONDS or end >= size - _SECONDS / 2:
            return max(start, peak + _MARGIN)
    return peak + EARLY


def _between(level: NDArray[np.float64], quiet: NDArray[np.bool_], before: float, after: float) -> tuple[float, float]:
    """The end of one word and the start of the next, from the peaks of the labels beside the boundary."""
    low, high = before + _MARGIN, after - _MARGIN
    if low >= high:  # a text that was spread: no peaks
        return (before + after) / 2, (before + after) / 2
    start, end = max(_pauses(quiet, before, after), key=lambda p: p[1] - p[0], default=(0.0, 0.0))
    if end - start >= (_SHORTEST_PAUSE - 0.5) * _SECONDS:
        return min(max(start, low), high), min(max(end, low), high)
    middle = (before + EARLY + after - LATE) / 2
    first = int(max(low, middle - _REACH) / _SECONDS)
    near = level[first : int(min(high, middle + _REACH) / _SECONDS) + 1]
    weakest = (first + int(near.argmin())) * _SECONDS if len(near) else middle
    edge = min(max(weakest, low), high)
    return edge, edge
