"""Loops are found, speech is not mistaken for one, and evidence counts both ways."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.options import SamplingOptions
from diffasr.guard import another_try, is_loop, no_speech_probability, repetition
from diffasr.windows import ListenOptions
from diffasr.words import HeardWord

HINDI = (
    "दिशानिर्देशों के अनुसार व्यक्तियों या संगठनों को यह बताना होगा कि उन्होंने "
    "किस प्रकार की सहायता दी है और सरकार ने पिछले वर्षों में गाँवों के "
    "विद्यालयों, अस्पतालों और किसानों के लिए कितना आर्थिक सहयोग किया है, जिससे "
    "लोगों के जीवन में सुधार आया है और रोजगार के नए अवसर भी पैदा हुए हैं।"
)
SENTENCE = "Strong passwords don't have to be hard to remember, but they have to be long."


def heard(*probabilities: float) -> list[HeardWord]:
    return [HeardWord(word="x", first=n, last=n, probability=p) for n, p in enumerate(probabilities)]


@given(
    before=st.integers(0, 5), period=st.integers(1, 6), turns=st.integers(3, 9), letters=st.permutations("abcdefghijk")
)
def test_the_share_of_a_loop_is_exact(before: int, period: int, turns: int, letters: list[str]) -> None:
    words = letters[:before] + letters[before : before + period] * turns
    expected = period * (turns - 1) / len(words) if len(words) >= 8 else 0.0
    assert repetition(" ".join(words), "en") == pytest.approx(expected)
    assert repetition("".join(words), "zh") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "code"), [(SENTENCE, "en"), (HINDI, "hi"), ("no, no", "en"), ("", "en"), ("他走了。", "zh")]
)
def test_speech_is_no_loop(text: str, code: str) -> None:
    assert not is_loop(text, code, ListenOptions())


def test_both_bounds_count() -> None:
    loop = "thank you for watching " * 12
    for options in (ListenOptions(repetition=1.0), ListenOptions(compression_ratio=1e9)):
        assert is_loop(loop, "en", options)
    assert not is_loop(loop, "en", ListenOptions(repetition=1.0, compression_ratio=1e9))


@pytest.mark.parametrize(
    ("phrase", "code"), [("देखने के लिए धन्यवाद ", "hi"), ("谢谢大家观看。", "zh"), ("merci d'avoir regardé ", "fr")]
)
def test_a_loop_is_squeezed_in_every_script(phrase: str, code: str) -> None:
    assert is_loop(phrase * 12, code, ListenOptions(repetition=1.0))


@given(st.floats(0, 1), st.lists(st.floats(0.001, 1), min_size=1, max_size=9), st.floats(0, 1), st.floats(0.001, 1))
def test_more_evidence_of_speech_means_less_doubt(voice: float, sure: list[float], more: float, extra: float) -> None:
    doubt = no_speech_probability(voice, heard(*sure), 1.0)
    assert 0 <= doubt <= 1
    assert no_speech_probability(max(voice, more), heard(*sure), 1.0) <= doubt + 1e-9
    assert no_speech_probability(voice, heard(*(max(p, extra) for p in sure)), 1.0) <= doubt + 1e-9


def test_what_ctc_cannot_place_is_left_to_the_detector() -> None:
    assert no_speech_probability(0.9, heard(0.0, 0.0), 1.0) == pytest.approx(0.1)
    assert no_speech_probability(0.9, [], 1.0) == pytest.approx(0.1)
    assert no_speech_probability(0.95, heard(0.001), 1.0) > 0.8 > no_speech_probability(0.95, heard(0.1), 1.0)


def test_a_letter_in_seconds_of_sound_needs_better_evidence() -> None:
    assert no_speech_probability(1.0, heard(0.2), 4.0) > 0.8 > no_speech_probability(1.0, heard(0.2), 1.0)
    assert no_speech_probability(1.0, heard(0.9), 4.0) < 0.8, "a single sign that is surely heard is believed"
    word = [HeardWord(word="Unis.", first=0, last=3, probability=0.06)]
    assert no_speech_probability(1.0, word, 4.0) > 0.8 > no_speech_probability(1.0, word, 2.5)


def test_a_sentence_that_ctc_hardly_heard_is_not_believed_without_the_detector() -> None:
    """What the mini writes of clipped noise, and the least clear clip of the dev set."""
    words = [HeardWord(word=w, first=0, last=3, probability=0.037) for w in ("La", "lettre", "d'un", "bain.")]
    assert no_speech_probability(1.0, words, 4.0) > 0.8
    assert no_speech_probability(0.9, [replace(word, probability=0.063) for word in words], 2.3) < 0.8


def test_another_try_leaves_room_for_chance() -> None:
    usual = SamplingOptions(seed=5)
    again = another_try(usual, 2)
    assert again.seed == 7
    assert again.seed_noise > 0
    assert replace(again, seed=5, seed_noise=0.0) == usual
    assert another_try(replace(usual, seed_noise=0.5), 1).seed_noise == 0.5
