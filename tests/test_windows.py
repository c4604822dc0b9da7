"""Windows hold all the speech, are never too long, and are cut where it is silent; seams lose and double no word."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffasr import windows as module
from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.errors import AudioError, OptionError
from diffasr.vad import FRAME
from diffasr.windows import ListenOptions, Window, Windows, find_cut, find_speech

SAMPLE = load_audio(Path(__file__).parent.parent / "samples" / "de.opus")
SECOND = SAMPLE_RATE_HZ


class Told:
    """Stands in for the detector: the sound itself is the probability, 1 where it is loud."""

    def __init__(self) -> None:
        self.rest: Samples = np.zeros(0, np.float32)

    def hear(self, samples: Samples) -> Samples:
        self.rest = np.concatenate((self.rest, samples))
        count = len(self.rest) // FRAME
        frames, self.rest = self.rest[: count * FRAME].reshape(count, FRAME), self.rest[count * FRAME :]
        return frames.mean(axis=1)

    def finish(self) -> Samples:
        return self.hear(np.zeros(FRAME - len(self.rest), np.float32)) if len(self.rest) else self.rest


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SpeechDetector", Told)


def sound(*stretches: float, noise: float = 0.001) -> Samples:
    """Silence (``noise`` loud) and speech by turns, in seconds, each a whole number of frames."""
    frames = [round(s * SECOND / FRAME) for s in stretches]
    return np.concatenate([np.full(n * FRAME, 1 if k % 2 else noise, np.float32) for k, n in enumerate(frames)])


def cut(samples: Samples, **changes: Any) -> list[Window]:
    return list(Windows(samples, ListenOptions(**changes)))


def seconds(windows: list[Window]) -> list[tuple[float, float]]:
    return [(round(w.start / SECOND, 1), round(w.end / SECOND, 1)) for w in windows]


def check_cover(windows: list[Window], samples: Samples, *, loud: Any, longest: float) -> None:
    """Every loud sample is in a window, no window is too long, and each holds its stretch of the recording."""
    covered = np.zeros(len(samples), bool)
    for window in windows:
        assert 0 <= window.start < window.end <= len(samples)
        assert window.end - window.start <= longest * SECOND
        np.testing.assert_array_equal(window.samples, samples[window.start : window.end])
        assert all(window.start <= a < b <= window.end for a, b in window.speech)
        covered[window.start : window.end] = True
    assert not (loud & ~covered).any()
    for before, after in pairwise(windows):
        assert before.start < after.start
        assert before.runs_on or before.end <= after.start


@pytest.mark.usefixtures("told")
@settings(max_examples=30)
@given(
    stretches=st.lists(st.one_of(st.floats(0.2, 2.5), st.floats(5, 70)), min_size=1, max_size=8),
    aim=st.floats(1, 30), longest=st.floats(1, 30), margin=st.floats(0, 2), pause=st.floats(0.1, 3),
    share=st.floats(0, 0.5), noise=st.sampled_from([0.0, 0.001]),
)  # fmt: skip
def test_every_second_of_speech_is_in_a_window(
    stretches: list[float], aim: float, longest: float, margin: float, pause: float, share: float,
    noise: float,
) -> None:  # fmt: skip
    samples = sound(*stretches, noise=noise)
    options = {
        "window_seconds": aim, "longest_seconds": longest, "margin_seconds": margin, "pause_seconds": pause,
        "overlap_seconds": share * max(longest, aim),
    }  # fmt: skip
    check_cover(cut(samples, **options), samples, loud=samples == 1, longest=max(longest, aim))


@given(probabilities=st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.6, 1.0]), max_size=300), aim=st.floats(1, 8))
def test_plans_of_any_probabilities_keep_the_speech_that_was_found(probabilities: list[float], aim: float) -> None:
    p: Samples = np.array(probabilities, np.float32)
    expected, _ = find_speech(p, 0.5, is_speaking=False)
    options, done, taken = ListenOptions(window_seconds=aim), 0, np.zeros(len(p) + 1, bool)
    while (plan := find_cut(p[done:], options, is_speaking=False, is_last=True)) is not None:
        assert plan.forget > 0
        taken[done + plan.first : done + plan.last] = True
        done += plan.forget
    assert done == len(p)
    assert all(taken[a:b].all() for a, b in expected)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ((5.0,), []),
        ((5.0, 2.0, 5.0), [(4.7, 7.3)]),
        ((0.0, 3.0, 2.0, 3.0), [(0.0, 3.3), (4.7, 8.0)]),  # a long pause always ends a window
        ((0.0, 3.0, 0.5, 3.0), [(0.0, 6.5)]),  # a short one does not
        ((0.0, 7.0, 0.3, 3.0, 0.6, 4.0, 0.4, 2.0), [(0.0, 10.6), (10.6, 17.3)]),  # the longest near the end
        ((0.0, 18.0, 0.3, 3.0), [(0.0, 18.2), (18.1, 21.3)]),  # none near: the first behind
        ((0.0, 30.0), [(0.0, 20.0), (17.0, 30.0)]),  # none at all: overlap
    ],
)
def test_where_windows_are_cut(stretches: tuple[float, ...], expected: list[tuple[float, float]]) -> None:
    found = seconds(cut(sound(*stretches)))
    assert found == [(pytest.approx(a, abs=0.11), pytest.approx(b, abs=0.11)) for a, b in expected]


@pytest.mark.usefixtures("told")
def test_speech_without_a_pause_runs_on() -> None:
    windows = cut(sound(0, 50))
    assert [w.runs_on for w in windows] == [True, True, False]
    assert all(before.end - after.start == pytest.approx(3 * SECOND, abs=FRAME) for before, after in pairwise(windows))


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("stretches", "changes"),
    [
        ((1.0, 0.6, 1.0), {"margin_seconds": 0.0}),
        ((0.0, 3.0, 0.5, 3.0), {"pause_seconds": 0.4}),
        ((0.0, 5.0, 0.5, 5.0), {"window_seconds": 6.0}),
        ((0.0, 40.0), {"overlap_seconds": 1.0}),
        ((0.0, 40.0), {"longest_seconds": 30.0}),
        ((0.0, 5.0), {"threshold": 1.0, "vad": False}),
        ((9.0,), {"vad": False}),
    ],
)
def test_every_option_has_its_effect(stretches: tuple[float, ...], changes: dict[str, Any]) -> None:
    samples = sound(*stretches)
    usual, changed = cut(samples), cut(samples, **changes)
    if changes.get("threshold"):
        assert usual[0].speech_probability == changed[0].speech_probability == 1
    else:
        assert seconds(usual) != seconds(changed)


def test_a_higher_threshold_hears_less() -> None:
    strict, lax = cut(SAMPLE, threshold=0.95), cut(SAMPLE, threshold=0.1)
    length = [sum(b - a for w in found for a, b in w.speech) for found in (strict, lax)]
    assert 0 < length[0] < length[1]


def test_a_recording_is_refused_past_its_limit() -> None:
    assert cut(SAMPLE, max_seconds=None)
    with pytest.raises(AudioError, match="max_seconds=1"):
        cut(SAMPLE, max_seconds=1.0)


@settings(max_examples=20)
@given(length=st.integers(1, 40 * SECOND), aim=st.floats(1, 30))
def test_without_a_detector_windows_partition_the_sound(length: int, aim: float) -> None:
    samples = np.random.default_rng(length).standard_normal(length, dtype=np.float32)
    windows = cut(0.1 * samples, vad=False, window_seconds=aim)
    edges = [0, *(w.end for w in windows)]
    assert [w.start for w in windows] == edges[:-1]
    assert edges[-1] == length
    assert all(w.end - w.start <= aim * SECOND for w in windows)


def test_real_speech_is_found_in_silence() -> None:
    lead = np.zeros(3 * SECOND, np.float32)
    (alone,) = cut(SAMPLE)
    (later,) = cut(np.concatenate((lead, SAMPLE, lead)))
    assert later.start - len(lead) == pytest.approx(alone.start, abs=4 * FRAME)
    assert later.end - len(lead) == pytest.approx(alone.end, abs=4 * FRAME)
    assert later.speech_probability == pytest.approx(alone.speech_probability, abs=0.05)


def check_joined(joined: list[Window], alone: list[Window], offset: int) -> None:
    """Windows of a recording and the same later: not a sample, not a bit between them."""
    for window, other in zip(joined, alone, strict=True):
        assert (window.start - offset, window.end - offset) == (other.start, other.end)
        assert [(a - offset, b - offset) for a, b in window.speech] == list(other.speech)
        assert (window.speech_probability, window.runs_on) == (other.speech_probability, other.runs_on)
        np.testing.assert_array_equal(window.samples, other.samples)


@pytest.mark.parametrize("silence", [SECOND, SECOND + 1, 5 * SECOND + 333])
def test_recordings_joined_with_digital_silence_have_the_windows_of_each(silence: int) -> None:
    dense = np.tile(SAMPLE[SECOND // 2 : 3 * SECOND], 12)  # thirty seconds with no long pause
    for first, second in ((SAMPLE, dense), (dense, SAMPLE)):
        offset = len(first) + silence
        joined = cut(np.concatenate((first, np.zeros(silence, np.float32), second)))
        before = [window for window in joined if window.start < offset]
        check_joined(before, cut(first), 0)
        check_joined(joined[len(before) :], cut(second), offset)


def test_joined_with_less_they_may_share_a_window() -> None:
    joined = np.concatenate((SAMPLE, np.zeros(SECOND // 10, np.float32), SAMPLE[SECOND // 2 :]))
    assert len(cut(joined, pause_seconds=2.0)) == 1
    assert len(cut(np.concatenate((SAMPLE, np.zeros(2 * SECOND, np.float32), SAMPLE)), pause_seconds=2.0)) == 2


def test_windows_do_not_depend_on_how_the_recording_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    long = np.tile(SAMPLE, 5)
    usual = cut(long)
    monkeypatch.setattr(module, "stream_blocks", lambda source, **_: iter(np.array_split(source, 77)))
    check_joined(cut(long), usual, 0)


def test_the_length_is_known_when_all_is_read() -> None:
    for vad in (True, False):
        recording = Windows(SAMPLE, ListenOptions(vad=vad))
        assert recording.seconds == 0
        list(recording)
        assert recording.seconds == len(SAMPLE) / SECOND


@pytest.mark.usefixtures("told")
def test_no_more_than_a_window_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def blocks(source: object, **options: object) -> Iterator[Samples]:
        nonlocal read
        for n in range(600):
            read += SECOND
            yield np.full(SECOND, float(n % 10 < 6), np.float32)

    monkeypatch.setattr(module, "stream_blocks", blocks)
    for window in Windows("ten minutes", ListenOptions()):
        assert read - window.end <= 35 * SECOND


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.0}, {"threshold": 1.1}, {"no_speech": -0.1}, {"repetition": 1.1}, {"window_seconds": 0.5},
        {"window_seconds": 31.0}, {"pause_seconds": 0.0}, {"margin_seconds": -1.0}, {"overlap_seconds": 11.0},
        {"longest_seconds": 31.0},
        {"compression_ratio": 0.0}, {"retries": -1}, {"max_seconds": 0.0},
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(changes))} must be .* got"):
        ListenOptions(**changes)


def test_the_command_line_passes_every_one_on() -> None:
    from diffasr.cli import parse
    from diffasr.cli.transcribe import _settings

    numbers = {
        "threshold": 0.3,
        "window_seconds": 9.0,
        "pause_seconds": 2.0,
        "margin_seconds": 0.1,
        "max_seconds": 60.0,
    }
    words = [word for name, n in numbers.items() for word in (f"--{name.replace('_', '-')}", str(n))]
    asked = ListenOptions(vad=False, **numbers)  # type: ignore[arg-type]
    assert _settings(parse(["transcribe", "x.wav", "--no-vad", *words])).listen == asked
    assert _settings(parse(["transcribe", "x.wav"])).listen is None
    with pytest.raises(OptionError, match="threshold"):
        _settings(parse(["transcribe", "x.wav", "--threshold", "2"]))
