"""From recordings to transcripts: windows, batches, order, languages and times."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, wake

from diffasr import transcribe as module
from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.decode import Decoded
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.errors import AudioError, OptionError
from diffasr.model import checkpoint
from diffasr.model.checkpoint import Model
from diffasr.model.config import EncoderConfig
from diffasr.model.network import Speech
from diffasr.transcribe import Transcriber

QUICK = SamplingOptions(steps=2)


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
        self.languages: list[torch.Tensor | None] = []

    def __call__(self, model: Model, speech: Speech, languages: Any, options: Any, show: Any = None) -> list[Decoded]:
        self.batches.append(speech.lengths.tolist())
        self.languages.append(languages)
        return [
            Decoded(
                text="" if n < 10 else str(n),
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
    together = asr.transcribe(list(sounds), options=QUICK)
    for sound, result in zip(sounds, together, strict=True):
        alone = asr.transcribe(sound, options=QUICK)
        assert (alone.text, alone.language, alone.duration) == (result.text, result.language, result.duration)
        assert alone.language_probability == pytest.approx(result.language_probability, abs=1e-4)
    assert len({r.text for r in together}) > 1
    assert asr.transcribe([], options=QUICK) == []


def test_a_long_recording_is_cut_and_put_together_in_order(typist: Typist, model: Model) -> None:
    sound = noise(70.0)
    result = Transcriber(model).transcribe(sound)
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
    results = Transcriber(model, batch_seconds=4.0).transcribe(list(sounds))
    assert typist.batches == [[50, 50, 50], [100], [200], [250]]
    assert [r.text for r in results] == ["250", "50", "200", "50", "100", "50"], "answers in the order of the question"


def test_silent_windows_leave_no_segment_but_count_as_time(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(0.1))
    assert (result.text, result.segments, result.duration) == ("", (), 0.1)


def test_texts_are_joined_as_their_languages_write(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(62.0))
    texts, kinds = [s.text for s in result.segments], [s.language for s in result.segments]
    assert kinds == ["zh", "zh", "de"]
    assert result.text == f"{texts[0]}{texts[1]} {texts[2]}"
    assert (result.language, result.language_probability) == ("zh", pytest.approx(0.75)), "that of most of the time"


def test_a_given_language_is_passed_on_and_not_called_a_guess(typist: Typist, model: Model) -> None:
    result = Transcriber(model).transcribe(noise(1.0), language="hi")
    assert typist.languages[0] is not None
    assert typist.languages[0].tolist() == [4]
    assert (result.language, result.language_probability) == ("hi", None)
    Transcriber(model).transcribe(noise(1.0))
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
    results = asr.transcribe(list(sounds), options=QUICK, watch=lambda *told: seen.append(told))
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
    assert asr.transcribe(sound, options=QUICK).text == Transcriber(model).transcribe(sound, options=QUICK).text
