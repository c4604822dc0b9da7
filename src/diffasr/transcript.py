"""What a recording turns into: frozen records with times in seconds, and the dictionaries that JSON shows.

Names follow faster-whisper where it has one. ``to_dict`` is the only way from here to JSON: the command
line and the server print the same keys.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from diffasr.errors import OptionError
from diffasr.text import LANGUAGES


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and when it was said; in Mandarin a character."""

    word: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    probability: float
    """How likely it is right, in [0, 1]. Without a calibration in the model: how sure CTC was of its letters. Where
    votes disagree it is lower: see ``confidence``. 1 where somebody confirmed it."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise OptionError(f"a word must have 0 <= start <= end, got {self.start} to {self.end}")
        if not 0 <= self.probability <= 1:
            raise OptionError(f"probability must be in [0, 1], got {self.probability}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, times rounded to milliseconds."""
        return {
            "word": self.word,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "probability": round(self.probability, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another text of a segment."""

    text: str
    score: float
    """How far it is what all votes say, in [0, 1]: 1 when each of them wrote it."""
    avg_logprob: float
    """As in Segment; of several votes that wrote it, the best."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {"text": self.text, "score": round(self.score, 4), "avg_logprob": self.avg_logprob}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One window of the recording and what was said in it."""

    start: float
    """Where the window begins, counted from the start of the recording."""
    end: float
    text: str
    language: str
    """Code of the language that the text was written in, such as "en"."""
    avg_logprob: float
    """Mean natural logarithm of the probability of the written tokens: 0 is certain."""
    steps: int
    """Denoising steps that were run for this window; fewer than asked for if it settled early."""
    language_probability: float | None = None
    """How sure the model was of the language of this window, in [0, 1]; None when the caller named it."""
    no_speech_prob: float = 0.0
    """How likely it is that nobody speaks here, in [0, 1], from the detector and CTC: see ``guard``; not calibrated."""
    words: tuple[Word, ...] = ()
    """In the order of time."""
    alternatives: tuple[Alternative, ...] = ()
    """Different texts of the votes, the one that most agrees with all of them first, where they were asked for; none
    where a seam cuts the segment."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise OptionError(f"a segment must have 0 <= start <= end, got {self.start} to {self.end}")
        if not -math.inf < self.avg_logprob <= 0:
            raise OptionError(f"avg_logprob must be finite and at most 0, got {self.avg_logprob}")
        if self.steps < 0:
            raise OptionError(f"steps must be at least 0, got {self.steps}")
        if not 0 <= self.no_speech_prob <= 1:
            raise OptionError(f"no_speech_prob must be in [0, 1], got {self.no_speech_prob}")
        if self.language_probability is not None and not 0 <= self.language_probability <= 1:
            raise OptionError(f"language_probability must be in [0, 1] or None, got {self.language_probability}")

    @property
    def compression_ratio(self) -> float:
        """How many times zlib makes the text smaller: text that goes round in a loop shrinks most."""
        return compression_ratio(self.text)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, times rounded to milliseconds."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "language": self.language,
            "avg_logprob": self.avg_logprob,
            "steps": self.steps,
            "language_probability": self.language_probability,
            "no_speech_prob": self.no_speech_prob,
            "compression_ratio": self.compression_ratio,
            "words": [word.to_dict() for word in self.words],
            "alternatives": [other.to_dict() for other in self.alternatives],
        }


def _made(kind: type[Any], facts: Mapping[str, Any]) -> Any:
    """A record from a dictionary of its fields, which may hold more; raises TypeError where one is missing."""
    return kind(**{f.name: facts[f.name] for f in fields(kind) if f.name in facts})


def compression_ratio(text: str) -> float:
    """Bytes of ``text`` in UTF-8 over those that zlib makes of them; as Whisper defines it (openai/whisper)."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


Reason = Literal["no text", "no speech", "repetition", "cut"]
"""``no text``: nothing was decoded. ``no speech``: ``no_speech_prob`` is too high. ``repetition``: the text went round
in a loop, with every seed that was tried. ``cut``: the text before it filled the largest canvas."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Detected speech that is in no segment."""

    start: float
    """Seconds from the start of the recording."""
    end: float
    reason: Reason

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise OptionError(f"a gap must have 0 <= start <= end, got {self.start} to {self.end}")
        if self.reason not in get_args(Reason):
            raise OptionError(f"reason can be {', '.join(get_args(Reason))}, got {self.reason!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, times rounded to milliseconds."""
        return {"start": round(self.start, 3), "end": round(self.end, 3), "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """A whole recording as text, with the segments it was put together from."""

    text: str
    language: str
    language_probability: float | None
    """How sure the model was of the language, in [0, 1]; None when the caller named it."""
    duration: float
    """Length of the recording."""
    segments: tuple[Segment, ...]
    """In the order of time, without overlap; empty when nobody spoke."""
    model: str
    """Which checkpoint wrote this."""
    gaps: tuple[Gap, ...] = ()
    """In the order of time. Every second of detected speech is in a segment or in one of these."""

    def __post_init__(self) -> None:
        if self.language_probability is not None and not 0 <= self.language_probability <= 1:
            raise OptionError(f"language_probability must be in [0, 1] or None, got {self.language_probability}")
        if not 0 <= self.duration < math.inf:
            raise OptionError(f"duration must be finite and at least 0, got {self.duration}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, times rounded to milliseconds."""
        return {
            "text": self.text,
            "language": self.language,
            "language_probability": self.language_probability,
            "duration": round(self.duration, 3),
            "segments": [segment.to_dict() for segment in self.segments],
            "model": self.model,
            "gaps": [gap.to_dict() for gap in self.gaps],
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Transcript":
        """What ``to_dict`` wrote, with its rounded times; raises OptionError for anything else."""
        try:
            segments = [
                _made(
                    Segment,
                    part
                    | {
                        "words": tuple(_made(Word, word) for word in part["words"]),
                        "alternatives": tuple(_made(Alternative, other) for other in part.get("alternatives", ())),
                    },
                )
                for part in facts["segments"]
            ]
            gaps = tuple(_made(Gap, gap) for gap in facts["gaps"])
            if not all(isinstance(part.text, str) for part in segments):
                raise TypeError("the text of a segment is no string")
            return _made(cls, {**facts, "segments": tuple(segments), "gaps": gaps})
        except (KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"this is no transcript of diffasr: {error!r}; --format json writes one") from error


def put_together(pieces: Sequence[Segment | Gap], *, language: str | None, seconds: float, model: str) -> Transcript:
    """The pieces of one recording, in the order of time, as its transcript.

    language: what the caller said it is; None: that of most of the time, among the segments. seconds: its length.
    """
    segments = tuple(piece for piece in pieces if isinstance(piece, Segment))
    main, probability = _main_language(segments)
    return Transcript(
        text=joined(segments),
        language=language or main,
        language_probability=None if language else probability,
        duration=seconds,
        segments=segments,
        model=model,
        gaps=tuple(piece for piece in pieces if isinstance(piece, Gap)),
    )


def _main_language(segments: Sequence[Segment]) -> tuple[str, float]:
    """The language of most of the time, and the model's mean probability of it there; 0 where nobody spoke."""
    time = dict.fromkeys(LANGUAGES, 0.0)
    sure = dict.fromkeys(LANGUAGES, 0.0)
    for segment in segments:
        length = segment.end - segment.start
        time[segment.language] += length
        sure[segment.language] += length * (segment.language_probability or 0.0)
    main = max(time, key=time.__getitem__)
    return main, min(1.0, sure[main] / time[main]) if time[main] else 0.0


def joined(segments: Sequence[Segment]) -> str:
    """Texts in a row: a space between them, none where a Mandarin one follows another."""
    out, before = "", ""  # of a recording without words, the empty text
    for segment in segments:
        out += ("" if not out or before == segment.language == "zh" else " ") + segment.text
        before = segment.language
    return out
