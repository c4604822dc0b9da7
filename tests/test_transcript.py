"""Records check themselves, cannot be changed, and become plain JSON with the same names."""

import dataclasses
import json
import math
from typing import Any

import pytest

from diffasr.errors import OptionError
from diffasr.transcript import Gap, Segment, Transcript, Word, compression_ratio


def make_segment(**changes: Any) -> Segment:
    values: dict[str, Any] = {
        "start": 0.0,
        "end": 1.23456,
        "text": "grüß dich",
        "language": "de",
        "avg_logprob": -0.25,
        "steps": 4,
    }
    return Segment(**{**values, **changes})


def make_transcript(**changes: Any) -> Transcript:
    values: dict[str, Any] = {
        "text": "grüß dich",
        "language": "de",
        "language_probability": 0.75,
        "duration": 1.23456,
        "segments": (make_segment(),),
        "model": "mini",
    }
    return Transcript(**{**values, **changes})


GAP = Gap(start=0.5, end=1.0, reason="repetition")


def make_word(**changes: Any) -> Word:
    return Word(**{"word": "grüß", "start": 0.08, "end": 0.48, "probability": 0.5, **changes})


def test_words_stand_in_their_segment() -> None:
    word = make_word(start=0.08049, probability=0.123456)
    as_dict = make_segment(words=(word, make_word())).to_dict()
    assert as_dict["words"] == [word.to_dict(), make_word().to_dict()]
    assert (word.to_dict()["start"], word.to_dict()["probability"]) == (0.08, 0.1235)


@pytest.mark.parametrize("changes", [{"start": -0.1}, {"end": 0.01}, {"end": float("inf")}, {"probability": 1.1}])
def test_a_word_out_of_range_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="must"):
        make_word(**changes)


@pytest.mark.parametrize("record", [make_segment(), make_transcript(), make_word(), GAP])
def test_dictionary_has_exactly_the_fields_and_is_json(record: Segment | Transcript | Word | Gap) -> None:
    as_dict = record.to_dict()
    derived = {"compression_ratio"} if isinstance(record, Segment) else set()
    assert [name for name in as_dict if name not in derived] == [field.name for field in dataclasses.fields(record)]
    assert all(as_dict[name] == getattr(record, name) for name in derived)
    assert json.loads(json.dumps(as_dict, allow_nan=False)) == as_dict


def test_times_are_rounded_to_milliseconds_in_json_only() -> None:
    transcript = make_transcript()
    as_dict = transcript.to_dict()
    assert (as_dict["duration"], as_dict["segments"][0]["end"]) == (1.235, 1.235)
    assert (transcript.duration, transcript.segments[0].end) == (1.23456, 1.23456)


def test_every_value_but_the_times_comes_through_unchanged() -> None:
    as_dict = make_transcript().to_dict()
    derived = {"end": 1.235, "words": [], "alternatives": [], "compression_ratio": make_segment().compression_ratio}
    assert as_dict["segments"][0] == {**dataclasses.asdict(make_segment()), **derived}
    expected = {**dataclasses.asdict(make_transcript()), "duration": 1.235, "segments": as_dict["segments"], "gaps": []}
    assert as_dict == expected
    assert make_transcript(gaps=(GAP,)).to_dict()["gaps"] == [GAP.to_dict()]


def test_loops_shrink_most() -> None:
    assert compression_ratio("thank you " * 30) > 2.4 > compression_ratio("Aber ich begrüße die Anzeichen.") > 0
    assert compression_ratio("") == 0
    assert make_segment(text="ha " * 100).compression_ratio == compression_ratio("ha " * 100)


@pytest.mark.parametrize("changes", [{"start": 2.0}, {"end": math.inf}, {"reason": "tired"}])
def test_bad_gap_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="got"):
        dataclasses.replace(GAP, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": -0.1},
        {"start": 2.0},
        {"end": math.inf},
        {"end": math.nan},
        {"avg_logprob": 0.1},
        {"avg_logprob": -math.inf},
        {"avg_logprob": math.nan},
        {"steps": -1},
        {"no_speech_prob": 1.1},
        {"language_probability": -0.1},
    ],
)
def test_bad_segment_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="got"):
        make_segment(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"language_probability": 1.1},
        {"language_probability": math.nan},
        {"duration": -1.0},
        {"duration": math.inf},
        {"duration": math.nan},
    ],
)
def test_bad_transcript_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="got"):
        make_transcript(**changes)


def test_limits_are_allowed() -> None:
    make_segment(start=1.0, end=1.0, avg_logprob=0.0, steps=0)
    make_transcript(language_probability=None, duration=0.0, segments=(), text="")


def test_records_are_frozen_and_hashable() -> None:
    transcript = make_transcript()
    with pytest.raises(dataclasses.FrozenInstanceError):
        transcript.text = "other"  # type: ignore[misc]
    assert hash(transcript) == hash(make_transcript())
