"""The clock changes nothing, and its parts add up to the whole."""

import time
from dataclasses import replace

import pytest
from conftest import random_speech

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decodable import decodable
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.clock import Clock
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
