"""Laws of fluency: a text reads as well as its letters say, wherever it is cut and however it is remembered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from diffasr.diffusion.fluency import Fluency, Fluent
from diffasr.diffusion.lattice import Sound, both_ways
from diffasr.letters import LanguageLetters
from diffasr.text import Spelling
from diffasr.train.letters import build

TEXTS = {
    "de": ["Die Straße ist größer als früher.", "Übrigens saß er hier.", "Äpfel für alle"],
    "hi": ["यह एक बड़ी बिल्ली है", "कुत्ता घर में है", "है"],
    "zh": ["那只猫很大。", "我在北京吃饭。", "我"],
}
LABELS = {"a": 1, "b": 2, "ab": 3}
SPELLING = Spelling(
    names=[], labels=LABELS, mirrored={k[::-1]: n for k, n in LABELS.items()}, longer={"a": [3]}, longest=2
)
LETTERS = build(TEXTS, order=4, least=1)
MIXED = build({"en": [line for lines in TEXTS.values() for line in lines]}, order=3, least=1).language("en")
WEIGHT, BONUS = 0.3, 1.2


def spelled(text: str) -> str:
    """As a byte-level vocabulary writes it."""
    if not text:
        return ""
    ((whole, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return str(whole)


def fluency(letters: LanguageLetters, *, weight: float = WEIGHT, bonus: float = BONUS) -> Fluency:
    return Fluency(letters, SPELLING, weight=weight, bonus=bonus)


CASES = [(code, text) for code, lines in TEXTS.items() for text in lines]


@pytest.mark.parametrize(("code", "text"), CASES)
def test_a_whole_text_is_worth_its_letters_and_a_bonus_for_each(code: str, text: str) -> None:
    letters = LETTERS.language(code)
    assert fluency(letters).whole(spelled(text)) == pytest.approx(WEIGHT * letters.text(text) + BONUS * len(text))
    begun = sum(letters.log_probability(" " + text[:n], letter) for n, letter in enumerate(text))
    assert fluency(letters).begins(spelled(text)) == pytest.approx(WEIGHT * begun + BONUS * len(text))


@pytest.mark.parametrize(("code", "text"), CASES)
def test_joined_is_the_whole_at_every_cut_inside_a_letter_too(code: str, text: str) -> None:
    """Whoever is asked first: what is remembered of one cut is right for the next."""
    written, asked = spelled(text), fluency(LETTERS.language(code))
    assert len(written) > len(text)
    for cut in range(len(written) + 1):
        joined = asked.joined(written[:cut], written[cut:])
        assert joined == pytest.approx(fluency(LETTERS.language(code)).whole(written)), cut


GOOD = " aßहै我\n\u00a0"
bits = [*map(spelled, 3 * GOOD), *spelled("ßह我")]
"""Letters, and pieces of some."""


@settings(max_examples=200)
@given(st.text(GOOD, max_size=6).map(spelled), st.lists(st.sampled_from(bits), max_size=6).map("".join))
def test_joined_is_the_whole_even_of_what_is_no_text(text: str, behind: str) -> None:
    asked = fluency(MIXED)
    for before, after in ((behind, text), (text, behind), (behind, behind)):
        assert asked.joined(before, after) == pytest.approx(fluency(MIXED).whole(before + after))


def test_outer_spaces_before_a_text_count_nothing() -> None:
    asked = fluency(MIXED)
    for text in ("Die Straße", "है", ""):
        for spaces in (" ", "   "):
            assert asked.whole(spelled(spaces + text)) == asked.whole(spelled(text))
            assert asked.joined(spelled(spaces), spelled(text)) == pytest.approx(asked.whole(spelled(text)))
    assert asked.begins(spelled("  ")) == 0.0
    assert asked.whole("\u2581Die") == asked.whole("Die"), "as other vocabularies write a space"


def test_a_letter_counts_when_it_is_whole() -> None:
    asked, (first, second, third) = fluency(LETTERS.language("hi")), spelled("ह")
    assert asked.begins(first) == asked.begins(first + second) == asked.begins("") == 0.0
    assert asked.begins(first + second + third) != 0.0


def test_weight_and_bonus_are_what_they_say() -> None:
    letters, text = LETTERS.language("zh"), "我在北京"
    assert fluency(letters, weight=0.0, bonus=2.0).whole(spelled(text)) == pytest.approx(2.0 * len(text))
    assert fluency(letters, weight=2.0, bonus=0.0).whole(text) == pytest.approx(2.0 * letters.text(text))


def test_a_fluent_lattice_adds_what_was_heard_and_how_it_reads() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(4), size=8)
    forwards, backwards = both_ways(Sound(np.log(shares).astype(np.float32), blank=0), SPELLING)
    letters = build({"en": ["abba", "bab"]}, order=3, least=1).language("en")
    both, reads = Fluent(forwards, fluency(letters)), fluency(letters)
    for text in ("", "a", "ab", "abba", "bbab"):
        assert both.whole(text) == forwards.whole(text) + reads.whole(text)
        assert both.begins(text) == forwards.begins(text) + reads.begins(text)
        for cut in range(len(text) + 1):
            assert both.joined(text[:cut], text[cut:], backwards) == pytest.approx(both.whole(text), abs=1e-3)
