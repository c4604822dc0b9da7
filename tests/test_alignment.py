"""An alignment keeps both texts and has as many edits as jiwer finds, in six scripts."""

import sys

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.errors import OptionError
from diffasr.evaluate.alignment import align, units

WORDS = st.lists(st.sampled_from(["a", "b", "ñ", "ß", "क़", "你", "ы", "∅"]), min_size=1, max_size=12)


@given(reference=WORDS, hypothesis=st.one_of(WORDS, st.just([])))
def test_it_keeps_both_sides_with_the_fewest_edits(reference: list[str], hypothesis: list[str]) -> None:
    pairs = align(reference, hypothesis)
    assert [a for a, _ in pairs if a is not None] == reference
    assert [b for _, b in pairs if b is not None] == hypothesis
    found = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    assert sum(a != b for a, b in pairs) == found.substitutions + found.insertions + found.deletions


def test_units_are_words_or_in_mandarin_letters() -> None:
    assert units("the cat", "en") == ["the", "cat"]
    assert units("汉语好", "zh") == list("汉语好")
    assert align([], ["a"]) == [(None, "a")]
    assert align(["a"], []) == [("a", None)]


def test_without_kaldialign_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(OptionError, match=r"diffasr\[evaluate\]"):
        align(["a"], ["b"])
