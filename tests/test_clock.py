"""The clock changes nothing, and its parts add up to the whole."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import random_speech
from test_comparisons import spelling_model

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decodable import decodable
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.clock import Clock
from diffasr.loading import load
from diffasr.model import checkpoint
from diffasr.model.loaded import Model


def test_texts_are_those_without_it(model: Model) -> None:
    clock, speech, options = Clock(decodable(model.network)), random_speech([40, 24]), SamplingOptions(steps=3)
    timed = replace(model, network=clock)
    known = [0, 1]
    assert ctc_texts(timed, speech) == ctc_texts(model, speech)
    assert ar_texts(timed, speech, known, most=4) == ar_texts(model, speech, known, most=4)
    assert decode(timed, speech, known, options) == decode(model, speech, known, options)


def test_calls_are_counted_by_stage_and_forgotten_when_taken(model: Model) -> None:
    clock, speech = Clock(decodable(model.network)), random_speech([40])
    timed = replace(model, network=clock)
    ctc_texts(timed, speech)
    ar_texts(timed, speech, [3], most=4)
    assert clock.languages == [3], "the last prefill's"
    times = clock.take()
    assert times.calls["ctc"] == times.calls["prefill"] == 1
    assert 1 <= times.calls["ar"] <= 4
    assert set(times.seconds) == {"ctc", "prefill", "ar"}
    assert clock.take().calls == clock.take().seconds == {}


@pytest.mark.parametrize("ahead", [0, None])
def test_what_is_asked_ahead_is_a_stage_of_its_own(tmp_path: Path, ahead: int | None) -> None:
    checkpoint.save(tmp_path, spelling_model(sharpness=0.3))
    plain, known, options = load(tmp_path, threads=1), [0, 1], SamplingOptions(steps=3, ahead=ahead)
    clock = Clock(decodable(plain.network))
    speech = clock.heard(list(random_speech([40, 24]).frames.numpy()))
    assert decode(replace(plain, network=clock), speech, known, options) == decode(plain, speech, known, options)
    times = clock.take()
    assert set(times.calls) == set(times.seconds) == {"prefill", "denoise"} | ({"ahead"} if ahead is None else set())


def test_the_stages_add_up_to_the_time_that_passed(model: Model) -> None:
    clock, speech = Clock(decodable(model.network)), random_speech([40])
    start = time.perf_counter()
    with clock.rest("text"):
        time.sleep(0.02)
        ctc_texts(replace(model, network=clock), speech)
    passed = time.perf_counter() - start
    seconds = clock.take().seconds
    assert seconds["text"] >= 0.02
    assert sum(seconds.values()) == pytest.approx(passed, abs=0.01)
