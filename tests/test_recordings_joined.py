"""Real recordings, with the embedded model: joined they give their texts, each in its language, every second told."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.quiet import KINDS, make
from diffasr.model.loaded import Precision
from diffasr.transcribe import Transcriber, load
from diffasr.transcript import Segment
from diffasr.windows import ListenOptions, Windows

QUICK = SamplingOptions(steps=2)
NAMES = ("de", "en", "es", "zh")
SPOKEN = {name: load_audio(Path(__file__).parent.parent / "samples" / f"{name}.opus") for name in NAMES}


@pytest.fixture(scope="module")
def mini() -> Transcriber:
    return load("mini")


def join(*pauses: int) -> tuple[Samples, list[int]]:
    """The recordings with so many samples of digital silence behind each, and where each begins."""
    parts, starts, size = list[Samples](), list[int](), 0
    for name, pause in zip(NAMES, pauses, strict=True):
        starts.append(size)
        parts += [SPOKEN[name], np.zeros(pause, np.float32)]
        size += len(SPOKEN[name]) + pause
    return np.concatenate(parts), starts


@pytest.fixture(scope="module")
def joined() -> Samples:
    return join(*[SAMPLE_RATE_HZ] * len(NAMES))[0]


def placeless(segment: Segment, offset: float) -> Segment:
    """The segment as it would be in a recording that begins ``offset`` seconds later, to the microsecond."""
    words = tuple(replace(w, start=round(w.start - offset, 6), end=round(w.end - offset, 6)) for w in segment.words)
    start, end = round(segment.start - offset, 6), round(segment.end - offset, 6)
    return replace(segment, start=start, end=end, words=words, language_probability=None)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_recordings_joined_give_their_texts_and_all_that_goes_with_them(precision: Precision) -> None:
    """In int8 to the last bit; in float32 sums depend on the size of the batch, in their last digits."""
    asr = load("mini", precision=precision)
    whole, starts = join(SAMPLE_RATE_HZ, 3 * SAMPLE_RATE_HZ + 1, SAMPLE_RATE_HZ + 777, 0)
    together = asr.transcribe(whole, options=QUICK)
    assert [s.language for s in together.segments] == list(NAMES)
    for name, start, segment in zip(NAMES, starts, together.segments, strict=True):
        (alone,) = asr.transcribe(SPOKEN[name], options=QUICK).segments
        assert segment.language_probability == pytest.approx(alone.language_probability, abs=1e-4)
        mine, other = placeless(segment, start / SAMPLE_RATE_HZ), placeless(alone, 0)
        if precision == "float32":
            assert mine.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
            assert [w.word for w in mine.words] == [w.word for w in other.words]
            mine, other = (replace(s, avg_logprob=0, no_speech_prob=0, words=()) for s in (mine, other))
        assert mine == other


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
