"""Sounds in which nobody speaks in, and how many words a minute a system writes of them out.

A recogniser should write nothing here. Whisper is known for inventing text on silence and noise, and its users ask for
this figure first. The sounds are made, not recorded: nothing is fetched, and the same seed gives the same sounds.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.errors import OptionError
from diffasr.evaluate.folder import Row
from diffasr.evaluate.sets import Clip, EvaluationSet
from diffasr.text import LANGUAGES

PREFIX = "quiet:"
KINDS = ("silence", "dc", "white", "pink", "brown", "hum", "tones", "chord", "clicks", "clipped")

_Wave = npt.NDArray[np.float64]


def quiet_set(spec: str, *, seed: int = 0) -> EvaluationSet:
    """The set that ``spec`` names: a recording of each of ``KINDS``, all without a word.

    spec: ``quiet:``, ``quiet:SECONDS`` of each kind, or ``quiet:SECONDS:LANGUAGE``, where a system that is told the
    language is told this one. Raises OptionError.
    """
    seconds, _, language = spec.removeprefix(PREFIX).partition(":")
    language = language or "en"
    if not re.fullmatch(r"\d*", seconds) or seconds == "0" or language not in LANGUAGES:
        raise OptionError(f"no set is called {spec!r}: give quiet:, quiet:SECONDS or e.g. quiet:20:de")
    length = int(seconds or 10)
    return EvaluationSet(
        name=f"{PREFIX}{length}:{language}",
        clips=tuple(
            Clip(id=kind, audio=make(kind, length, seed=seed), duration=float(length), text="", language=language)
            for kind in KINDS
        ),
    )


def make(kind: str, seconds: float, *, seed: int = 0) -> Samples:
    """(N,) samples of one of ``KINDS``; raises OptionError for another."""
    time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return _wave(kind, time, np.random.default_rng(seed)).astype(np.float32)


def _wave(kind: str, time: _Wave, dice: np.random.Generator) -> _Wave:
    still = np.zeros(len(time))
    match kind:
        case "silence" | "dc":
            return still + (0.0 if kind == "silence" else 0.4)
        case "white" | "clipped":
            return ((0.1 if kind == "white" else 3.0) * dice.standard_normal(len(time))).clip(-1, 1)
        case "pink" | "brown":
            return _coloured(len(time), 0.5 if kind == "pink" else 1.0, dice)
        case "hum":
            return sum((0.2 / n * np.sin(2 * np.pi * 50 * n * time + n) for n in range(1, 8)), still)
        case "tones" | "chord":
            return _melody(time, dice, voices=1 if kind == "tones" else 3)
        case "clicks":
            still[dice.integers(0, len(time), max(1, len(time) // 8000))] = 0.9
            return still
    raise OptionError(f"quiet sounds can be {', '.join(KINDS)}, got {kind!r}")


def _coloured(count: int, slope: float, dice: np.random.Generator) -> _Wave:
    """Noise whose amplitude falls with the frequency to the power of ``slope``."""
    spectrum = np.fft.rfft(dice.standard_normal(count))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** slope
    spectrum[0] = 0
    wave = np.fft.irfft(spectrum, count)
    return 0.3 * wave / max(float(np.abs(wave).max()), 1e-9)


def _melody(time: _Wave, dice: np.random.Generator, *, voices: int) -> _Wave:
    """Notes of a third of a second with overtones and a soft beginning and end."""
    note = (time * 3).astype(int)
    shape = np.sin(np.pi * (time * 3 % 1)) ** 0.5
    wave = np.zeros(len(time))
    for _ in range(voices):
        pitch = 220 * 2 ** (dice.integers(0, 24, int(note.max(initial=0)) + 1) / 12)
        for overtone in (1, 2, 3):
            wave += 0.2 / voices / overtone * np.sin(2 * np.pi * overtone * pitch[note] * time)
    return wave * shape


def words_in(text: str) -> int:
    """Words of ``text``, a Chinese character counted as one."""
    pieces = re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)
    return sum(any(c.isalnum() for c in piece) for piece in pieces)


def is_quiet(row: Row) -> bool:
    """Whether a row of results is of such a set."""
    return str(row["set"]).startswith(PREFIX)


def false_text(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Words a minute that each system wrote where nobody spoke: for each set, over all sounds and of each kind."""
    found = []
    for data, system in dict.fromkeys((row["set"], row["system"]) for row in rows if is_quiet(row)):
        mine = [row for row in rows if (row["set"], row["system"]) == (data, system)]
        kinds = {kind: _rate([row for row in mine if row["id"] == kind]) for kind in KINDS}
        found.append({"set": data, "system": system, "words_a_minute": _rate(mine), "kinds": kinds})
    return found


def _rate(rows: Sequence[Row]) -> float | None:
    minutes = sum(row["duration"] for row in rows) / 60
    return sum(words_in(row["hypothesis"]) for row in rows) / minutes if minutes else None


def cells(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table: set, system, words a minute over all, then of each kind."""
    rates = [(f["words_a_minute"], *f["kinds"].values()) for f in found]
    return [
        [f["set"], f["system"], *("–" if rate is None else f"{rate:.1f}" for rate in mine)]
        for f, mine in zip(found, rates, strict=True)
    ]
