"""From recordings to transcripts: windows, batches, order, languages and times."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, wake

from diffasr import transcribe as module
from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.decode import Decoded
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import AudioError, OptionError
from diffasr.model import checkpoint
from diffasr.model.config import EncoderConfig
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.transcribe import Transcriber
from diffasr.transcript import Gap
from diffasr.windows import ListenOptions, Window
from diffasr.words import HeardWord

QUICK = SamplingOptions(steps=2)
ALL = ListenOptions(vad=False, window_seconds=30.0)
"""Every second is listened to: the detector hears no speech in noise."""


def noise(seconds: float, seed: int = 0) -> Samples:
    samples: Samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    return 0.1 * samples


def padded(model: Model) -> Model:
    ears = EncoderConfig(**(vars(model.config.encoder) | {"mode": "padded"}))
    config = type(model.config)(**(vars(model.config) | {"encoder": ears}))
    return Model(network=model.network, tokenizer=model.tokenizer, config=config)


class Typist:
    """Stands in for ``decode``: writes how many frames a window has, in a language that depends on them."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.languages: list[list[int] | None] = []
        self.shortest = 10
        """Frames of a window in which it hears anything."""

    def __call__(
        self, model: Model, speech: Speech, languages: Any, options: Any, show: Any = None, guide: Any = None
    ) -> list[Decoded]:
        self.batches.append(speech.lengths.tolist())
        self.languages.append(languages)
        return [
            Decoded(
                text="" if n < self.shortest else str(n),
                language="zh" if n > 1000 else "de",
                language_probability=0.75,
                avg_logprob=-0.5,
                steps=3,
            )
            for n in speech.lengths.tolist()
        ]


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Typist:
    stand_in = Typist()
    monkeypatch.setattr(module, "decode", stand_in)
    return stand_in


def test_many_recordings_are_the_same_as_one_at_a_time() -> None:
    asr = Transcriber(wake(random_model()))
    sounds = [noise(1.3, 1), noise(0.4, 2), noise(2.1, 3)]
    together = asr.transcribe(list(sounds), options=QUICK, listen=ALL)
    for sound, result in zip(sounds, together, strict=True):
        alone = asr.transcribe(sound, options=QUICK, listen=ALL)
        assert (alone.text, alone.language, alone.duration) == (result.text, result.language, result.duration)
        assert alone.language_probability == pytest.approx(result.language_probability, abs=1e-4)
    assert len({r.text for r in together}) > 1
    assert asr.transcribe([], options=QUICK, listen=ALL) == []


def test_a_long_recording_is_cut_and_put_together_in_order(typist: Typist, model: Model) -> None:
    sound = noise(70.0)
    result = Transcriber(model).transcribe(sound, listen=ALL)
    edges = [(s.start, s.end) for s in result.segments]
    assert len(edges) >= 3
    assert edges[0][0] == 0
    assert edges[-1][1] == result.duration == 70
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    for segment in result.segments:
        assert int(segment.text) == pytest.approx(50 * (segment.end - segment.start), abs=1)
        assert (segment.avg_logprob, segment.steps) == (-0.5, 3)
    assert result.model == "tiny"


def test_batches_are_of_like_length_and_within_their_seconds(typist: Typist, model: Model) -> None:
    sounds = [noise(s) for s in (5.0, 1.0, 4.0, 1.0, 2.0, 1.0)]
    results = Transcriber(model, batch_seconds=4.0).transcribe(list(sounds), listen=ALL)
    assert typist.batches == [[50, 50, 50], [100], [200], [250]]
    assert [r.text for r in results] == ["250", "50", "200", "50", "100", "50"], "answers in the order of the question"


def test_silent_windows_leave_no_segment_but_count_as_time(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(0.1), listen=ALL)
    assert (result.text, result.segments, result.duration) == ("", (), 0.1)


def test_texts_are_joined_as_their_languages_write(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(62.0), listen=ALL)
    texts, kinds = [s.text for s in result.segments], [s.language for s in result.segments]
    assert kinds == ["zh", "zh", "de"]
    assert result.text == f"{texts[0]}{texts[1]} {texts[2]}"
    assert (result.language, result.language_probability) == ("zh", pytest.approx(0.75)), "that of most of the time"


def test_a_given_language_is_passed_on_and_not_called_a_guess(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(1.0), language="hi", listen=ALL)
    assert typist.languages[0] == [4]
    assert (result.language, result.language_probability) == ("hi", None)
    Transcriber(model).transcribe(noise(1.0), listen=ALL)
    assert typist.languages[1] is None


def test_bad_options_and_bad_audio_are_ours(model: Model) -> None:
    with pytest.raises(OptionError, match="batch_seconds"):
        Transcriber(model, batch_seconds=0.0)
    with pytest.raises(OptionError, match="'xx'"):
        Transcriber(model).transcribe(noise(1.0), language="xx")
    with pytest.raises(AudioError, match=r"nowhere\.wav"):
        Transcriber(model).transcribe("nowhere.wav")


def test_every_step_of_every_window_can_be_watched() -> None:
    seen: list[tuple[int, int, str]] = []
    asr = Transcriber(wake(random_model()))
    sounds = [noise(1.3, 1), noise(0.4, 2)]
    results = asr.transcribe(list(sounds), options=QUICK, listen=ALL, watch=lambda *told: seen.append(told))
    assert {window for window, _, _ in seen} == {0, 1}
    for window, result in enumerate(results):
        mine = [(step, text) for w, step, text in seen if w == window]
        assert mine[0][0] == 1
        assert result.text.startswith(mine[-1][1][: len(result.text)]), "the last draft is the text"


@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.33])
def test_even_a_click_can_be_heard(model: Model, seconds: float) -> None:
    for asr in (Transcriber(model), Transcriber(padded(model))):
        speech = asr.hear([noise(seconds), noise(1.0)])
        assert speech.frames.shape[:2] == (2, 50)
        assert speech.lengths.tolist() == [max(5, round(seconds * 50 + 0.49)), 50]


def test_hearing_in_a_batch_is_hearing_alone(model: Model) -> None:
    clips = [noise(0.5, 1), noise(1.0, 2)]
    for asr in (Transcriber(model), Transcriber(padded(model))):
        together = asr.hear(clips)
        for row, clip in enumerate(clips):
            alone = asr.hear([clip])
            n = int(alone.lengths[0])
            assert n == together.lengths[row]
            torch.testing.assert_close(together.frames[row, :n], alone.frames[0], rtol=1e-3, atol=1e-4)


def test_load_makes_a_transcriber_of_a_folder(model: Model, tmp_path: Any) -> None:
    checkpoint.save(tmp_path, model)
    asr = module.load(tmp_path)
    assert isinstance(asr, Transcriber)
    sound = noise(0.5)
    expected = Transcriber(model).transcribe(sound, options=QUICK, listen=ALL)
    assert asr.transcribe(sound, options=QUICK, listen=ALL).text == expected.text


class Reader:
    """Stands in for ``decode``: answers from a list, once each; the last answer stays."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.options: list[SamplingOptions] = []
        self.rows: list[int] = []
        self.contexts: list[str] = []
        self.is_whole = True

    def __call__(
        self, model: Model, speech: Speech, languages: Any, options: Any, show: Any = None, guide: Any = None
    ) -> list[Decoded]:
        self.options.append(options)
        self.contexts.append(guide.context)
        self.rows.append(len(speech.lengths))
        return [self.answer(i, n) for i, n in enumerate(speech.lengths.tolist())]

    def answer(self, row: int, frames: int) -> Decoded:
        text = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        words = tuple(
            HeardWord(word=w, first=n, last=n, probability=0.001 if w == "hm" else 0.9)
            for n, w in enumerate(text.split())
        )
        return Decoded(
            text=text, language="en", language_probability=0.5, avg_logprob=-0.5, steps=3, words=words,
            is_whole=self.is_whole,
        )  # fmt: skip


def reading(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Reader:
    stand_in = Reader(*answers)
    monkeypatch.setattr(module, "decode", stand_in)
    return stand_in


LOOP = "thank you for watching " * 12


def test_a_loop_is_decoded_again_with_another_seed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reading(monkeypatch, LOOP, "thank you")
    result = Transcriber(model).transcribe(noise(4.0), options=SamplingOptions(seed=7), listen=ALL)
    assert (result.text, result.gaps) == ("thank you", ())
    assert [o.seed for o in reader.options] == [7, 8]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_loop_that_stays_is_a_gap(model: Model, monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
    reader = reading(monkeypatch, LOOP)
    result = Transcriber(model).transcribe(noise(4.0), listen=replace(ALL, retries=retries))
    assert (result.text, result.gaps) == ("", (Gap(start=0.0, end=4.0, reason="repetition"),))
    assert len(reader.options) == 1 + retries
    lax = replace(ALL, compression_ratio=100.0, repetition=1.0)
    assert Transcriber(model).transcribe(noise(4.0), listen=lax).text == LOOP


@pytest.mark.parametrize(("said", "reason"), [("hm", "no speech"), ("", "no text"), (" . ", "no text")])
def test_what_is_not_believed_is_a_gap(model: Model, monkeypatch: pytest.MonkeyPatch, said: str, reason: Any) -> None:
    reading(monkeypatch, said)
    result = Transcriber(model).transcribe(noise(2.0), listen=ALL)
    assert (result.text, result.gaps) == ("", (Gap(start=0.0, end=2.0, reason=reason),))
    believed = Transcriber(model).transcribe(noise(2.0), listen=replace(ALL, no_speech=1.0))
    assert believed.text == ("hm" if said == "hm" else "")


def test_a_text_that_filled_its_canvas_is_followed_by_a_gap(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reading(monkeypatch, "as far as it went")
    assert Transcriber(model).transcribe(noise(4.0), listen=ALL).gaps == ()
    reader.is_whole = False
    result = Transcriber(model).transcribe(noise(4.0), listen=ALL)
    assert result.text == "as far as it went"
    assert result.gaps == (Gap(start=result.segments[0].words[-1].end, end=4.0, reason="cut"),)


def test_what_nobody_said_is_no_context(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reading(monkeypatch, "hm", "thank you", LOOP, "so long")
    Transcriber(model).transcribe(noise(44.0), listen=replace(ALL, context=True, window_seconds=12.0, retries=0))
    assert reader.contexts[:4] == ["", "", "thank you", ""]


def test_silence_is_no_speech_and_no_gap(model: Model) -> None:
    for sound in (np.zeros(SAMPLE_RATE_HZ, np.float32), noise(3.0)):
        result = Transcriber(model).transcribe(sound)
        assert (result.text, result.segments, result.gaps) == ("", (), ())
        assert (result.duration, result.language_probability) == (len(sound) / SAMPLE_RATE_HZ, 0.0)


def test_a_stream_is_the_transcript_piece_by_piece(typist: Typist, model: Model) -> None:
    sound, listen, typist.shortest = noise(70.0), replace(ALL, window_seconds=12.0), 400
    gaps: list[Gap] = []
    whole = Transcriber(model, batch_seconds=12.0).transcribe(sound, listen=listen)
    typist.batches.clear()
    stream = Transcriber(model, batch_seconds=12.0).stream(sound, listen=listen, on_gap=gaps.append)
    first = next(stream)
    assert sum(map(len, typist.batches)) <= 3, "nothing beyond the first batch was decoded for the first segment"
    streamed = [first, *stream]
    assert (tuple(streamed), tuple(gaps)) == (whole.segments, whole.gaps)
    assert len(gaps) >= 1 < len(streamed)
    covered = sorted((p.start, p.end) for p in (*streamed, *gaps))
    assert (covered[0][0], covered[-1][1]) == (0, 70)
    assert all(a[1] == b[0] for a, b in pairwise(covered))


def test_a_stream_refuses_before_it_begins_and_fails_where_the_file_does(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'xx'"):
        next(Transcriber(model).stream(noise(1.0), language="xx"))
    with pytest.raises(AudioError, match="nowhere"):
        next(Transcriber(model).stream("nowhere.wav"))


class Clockwork:
    """Stands in for ``decode`` where a word is said each second: each window says those that it holds whole."""

    def __init__(self, starts: dict[int, int]) -> None:
        self.starts = starts
        """Of windows, by their frames."""

    def __call__(
        self, model: Model, speech: Speech, languages: Any, options: Any, show: Any = None, guide: Any = None
    ) -> list[Decoded]:
        slot = 0.02 * 2**model.config.projector.strides
        (frames,) = speech.lengths.tolist()
        begin = self.starts[frames]
        inside = [n for n in range(begin, 80) if n + 0.8 <= begin + frames / 50]
        words = tuple(
            HeardWord(
                word=f"w{n}", first=round((n + 0.2 - begin) / slot), last=round((n + 0.6 - begin) / slot),
                probability=0.9,
            )
            for n in inside
        )  # fmt: skip
        text = " ".join(w.word for w in words)
        return [Decoded(text=text, language="en", language_probability=1, avg_logprob=-0.1, steps=1, words=words)]


def test_speech_without_a_pause_is_sewn_together(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [
        Window(
            start=s * SAMPLE_RATE_HZ, end=e * SAMPLE_RATE_HZ, samples=noise(float(e - s)),
            speech=((s * SAMPLE_RATE_HZ, e * SAMPLE_RATE_HZ),), speech_probability=1.0, runs_on=e < 80,
        )
        for s, e in ((0, 30), (27, 56), (53, 80))
    ]  # fmt: skip
    monkeypatch.setattr(module, "decode", Clockwork({1500: 0, 1450: 27, 1350: 53}))
    monkeypatch.setattr(module.Windows, "__iter__", lambda self: iter(windows))
    result = Transcriber(model, batch_seconds=1.0).transcribe(noise(1.0))
    assert result.text == " ".join(f"w{n}" for n in range(80))
    assert [s.end for s in result.segments[:-1]] == [s.start for s in result.segments[1:]]
