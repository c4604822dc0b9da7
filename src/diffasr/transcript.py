"""What a recording turns into: frozen records with times in seconds, and the dictionaries that JSON shows.

Names follow faster-whisper where it has one. ``to_dict`` is the only way from here to JSON: the command
line and the server print the same keys.
"""

import math
from dataclasses import dataclass
from typing import Any

from diffasr.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and when it was said; in Mandarin a character."""

    word: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    probability: float
    """How sure CTC was of its letters, in [0, 1]; not calibrated."""

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
    words: tuple[Word, ...] = ()
    """In the order of time."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise OptionError(f"a segment must have 0 <= start <= end, got {self.start} to {self.end}")
        if not -math.inf < self.avg_logprob <= 0:
            raise OptionError(f"avg_logprob must be finite and at most 0, got {self.avg_logprob}")
        if self.steps < 0:
            raise OptionError(f"steps must be at least 0, got {self.steps}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, times rounded to milliseconds."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "language": self.language,
            "avg_logprob": self.avg_logprob,
            "steps": self.steps,
            "words": [word.to_dict() for word in self.words],
        }


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
        }
