"""Real recordings, with the embedded model: joined they give their texts, each in its language, every second told."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.evaluate.quiet import KINDS, make
from diffasr.evaluate.score import Counts, character_counts
from diffasr.transcribe import Transcriber, load
from diffasr.windows import ListenOptions, Windows

QUICK = SamplingOptions(steps=2)
NAMES = ("de", "en", "es", "zh")
SPOKEN = {name: load_audio(Path(__file__).parent.parent / "samples" / f"{name}.opus") for name in NAMES}


@pytest.fixture(scope="module")
def mini() -> Transcriber:
    return load("mini")


@pytest.fixture(scope="module")
def joined() -> Samples:
    """With whole frames of silence between them, so that the detector sees the same frames in both."""
    pause = np.zeros(SAMPLE_RATE_HZ + 512, np.float32)
    return np.concatenate([part for name in NAMES for part in (SPOKEN[name], pause)])


def test_two_recordings_joined_give_the_two_texts(mini: Transcriber, joined: Samples) -> None:
    alone = mini.transcribe(list(SPOKEN.values()))
    whole = mini.transcribe(joined)
    assert [s.language for s in whole.segments] == [r.language for r in alone] == list(NAMES)
    assert all(s.language_probability is not None and s.language_probability > 0.5 for s in whole.segments)
    for segment, result in zip(whole.segments, alone, strict=True):
        assert segment.end - segment.start == pytest.approx(result.segments[0].end - result.segments[0].start, abs=0.5)
    # The detector remembers what it heard before, so windows differ by some hundredths of a second, and texts a little.
    pairs = [character_counts(r.text, s.text) for r, s in zip(alone, whole.segments, strict=True)]
    assert sum(pairs, Counts()).rate < 0.25


def test_every_second_of_detected_speech_is_told(mini: Transcriber, joined: Samples) -> None:
    result = mini.transcribe(joined, options=QUICK)
    spans = sorted((p.start, p.end) for p in (*result.segments, *result.gaps))
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for window in Windows(joined, ListenOptions()):
        for begin, end in window.speech:
            assert any(a <= begin / SAMPLE_RATE_HZ and end / SAMPLE_RATE_HZ <= b for a, b in spans)
    assert all(s.start <= w.start <= w.end <= s.end for s in result.segments for w in s.words)


def test_nothing_is_written_where_nobody_speaks(mini: Transcriber) -> None:
    sounds = [make(kind, 4) for kind in KINDS]
    for listen in (ListenOptions(), ListenOptions(vad=False)):
        assert [r.text for r in mini.transcribe(list(sounds), options=QUICK, listen=listen)] == [""] * len(KINDS)
