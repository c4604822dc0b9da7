"""Edits equal jiwer's and a textbook's in six scripts, and the bootstrap obeys the laws of resampling."""

import math
import sys
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from diffasr.errors import OptionError
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import (
    Counts,
    bootstrap,
    character_counts,
    character_errors,
    error_rates,
    paired_bootstrap,
    paired_bootstrap_of_means,
    word_counts,
)

SCRIPTS = {
    "Latin": "abc ",
    "accented Latin": "äéñœßo\u0308 ",
    "Devanagari": "कखग\u093c\u093f\u0940\u094d ",
    "Han": "汉漢字语語 ",
    "Arabic": "ابتث\u064e\u0651 ",
    "Hangul": "가각간나\u1100\u1161 ",
}
texts = st.text("abc 'éß,", max_size=12)
sizes_of = st.lists(st.integers(1, 20), min_size=2, max_size=30)


def textbook(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein's distance by the table that every textbook prints."""
    above = list(range(len(hypothesis) + 1))
    for row, wanted in enumerate(reference, 1):
        here = [row]
        for column, got in enumerate(hypothesis, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (wanted != got)))
        above = here
    return above[-1]


@pytest.mark.parametrize("script", SCRIPTS)
@given(data=st.data())
def test_counts_equal_jiwers_and_the_textbooks(script: str, data: st.DataObject) -> None:
    strings = st.text(SCRIPTS[script], max_size=15)
    reference, hypothesis = data.draw(strings), data.draw(strings)
    words, characters = word_counts(reference, hypothesis), character_counts(reference, hypothesis)
    assert words.errors == textbook(reference.split(), hypothesis.split())
    assert characters.errors == textbook(reference, hypothesis)
    assert (words.size, characters.size) == (len(reference.split()), len(reference))
    for counts, text in ((words, hypothesis.split()), (characters, hypothesis)):
        assert counts.hits + counts.substitutions + counts.insertions == len(text)
    assume(reference.split())  # jiwer refuses empty references
    by_word = jiwer.process_words(" ".join(reference.split()), " ".join(hypothesis.split()))
    by_character = jiwer.process_characters(reference, hypothesis, _as_it_stands, _as_it_stands)
    for counts, other in ((words, by_word), (characters, by_character)):
        found = (counts.hits, counts.substitutions, counts.insertions, counts.deletions)
        assert found == (other.hits, other.substitutions, other.insertions, other.deletions)
    assert words.rate == pytest.approx(by_word.wer)
    assert characters.rate == pytest.approx(by_character.cer)


_as_it_stands = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])  # jiwer strips the ends where left alone


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_counts_add_up_to_the_corpus(pairs: list[tuple[str, str]]) -> None:
    each = [character_counts(*pair) for pair in pairs]
    whole = sum(each, Counts())
    assert (whole.errors, whole.size) == (sum(c.errors for c in each), sum(c.size for c in each))
    assert whole + Counts() == whole
    assert whole.hits + whole.insertions + whole.substitutions == sum(len(hypothesis) for _, hypothesis in pairs)


def test_empty_sides_are_all_insertions_or_all_deletions() -> None:
    assert word_counts("", "") == Counts()
    assert word_counts(" ", "a b") == Counts(insertions=2)
    assert word_counts("a b", "") == Counts(deletions=2)
    assert character_counts("ab", "") == Counts(deletions=2)
    rates = [word_counts(*pair).rate for pair in (("", ""), ("", "a"), ("a b", ""), ("a", "b c d"))]
    assert rates == [0.0, math.inf, 1.0, 3.0]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_corpus_rates_equal_jiwers(pairs: list[tuple[str, str]]) -> None:
    pairs = [("a" + reference, hypothesis) for reference, hypothesis in pairs]  # jiwer refuses empty references
    rates = error_rates([(reference, hypothesis, "fr") for reference, hypothesis in pairs])
    references, hypotheses = ([normalise(pair[side], "fr") for pair in pairs] for side in (0, 1))
    assert rates == {"fr": pytest.approx(jiwer.cer(references, hypotheses))}


def test_errors_are_counted_on_normal_forms_and_spaces_count() -> None:
    assert character_errors("Hello, World!", "hello world", "en") == (0, 11)
    assert character_errors("hello world", "helloworld", "en") == (1, 11)
    assert character_errors("漢語。", "汉 语", "zh") == (0, 2)
    assert character_errors("", "ab", "en") == (2, 0)


def test_languages_are_kept_apart_and_rates_are_pooled() -> None:
    pairs = [("abcd", "abcd", "en"), ("ab", "", "en"), ("xy", "xz", "de"), ("...", "x", "es")]
    assert error_rates(pairs) == {"en": 2 / 6, "de": 1 / 2}, "no characters, no rate"
    assert error_rates([]) == {}


def test_without_rapidfuzz_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(OptionError, match=r"rapidfuzz.*diffasr\[evaluate\]"):
        word_counts("a", "b")


def corpus(utterances: int, rate: float = 0.2, seed: int = 0) -> tuple[list[int], list[int]]:
    """Errors and sizes of random utterances."""
    dice = np.random.default_rng(seed)
    sizes = dice.integers(5, 40, utterances)
    return dice.binomial(sizes, rate).tolist(), sizes.tolist()


@given(sizes_of, st.data())
def test_the_interval_holds_the_value_and_the_seed_decides(sizes: list[int], data: st.DataObject) -> None:
    errors = [data.draw(st.integers(0, 2 * size)) for size in sizes]
    found = bootstrap(errors, sizes, rounds=200)
    assert found.value == pytest.approx(sum(errors) / sum(sizes))
    assert found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12
    each = [wrong / size for wrong, size in zip(errors, sizes, strict=True)]
    assert min(each) - 1e-12 <= found.low and found.high <= max(each) + 1e-12, "a pooled rate is a mean of rates"
    assert bootstrap(errors, sizes, rounds=200) == found


def test_another_seed_and_other_rounds_draw_otherwise() -> None:
    errors, sizes = corpus(40)
    found = [bootstrap(errors, sizes, rounds=r, seed=s) for r, s in ((100, 0), (100, 1), (101, 0))]
    assert len({f.low for f in found}) == 3
    assert len({f.value for f in found}) == 1
    assert bootstrap(errors, sizes) == bootstrap(errors, sizes, rounds=1000, seed=0)


def test_four_times_the_utterances_halve_the_interval() -> None:
    wide, narrow = (bootstrap(*corpus(n)) for n in (500, 2000))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, abs=0.3)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    found = [bootstrap(*corpus(80, rate=0.2, seed=seed), rounds=200) for seed in range(200)]
    assert np.mean([f.low <= 0.2 <= f.high for f in found]) == pytest.approx(0.95, abs=0.04)


def test_equal_utterances_leave_no_doubt() -> None:
    found = bootstrap([1] * 9, [4] * 9)
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)
    alone = bootstrap([3], [4], rounds=1)
    assert (alone.low, alone.value, alone.high) == (0.75, 0.75, 0.75), "one utterance has nothing to differ from"


def test_groups_are_drawn_whole() -> None:
    errors, sizes = corpus(60)
    speakers = [f"s{n % 6}" for n in range(60)]
    pooled = [[sum(column[n] for n in range(60) if n % 6 == s) for s in range(6)] for column in (errors, sizes)]
    assert bootstrap(errors, sizes, groups=speakers) == bootstrap(*pooled), "a speaker is one long utterance"
    assert bootstrap(errors, sizes, groups=["one"] * 60).high == sum(errors) / sum(sizes)
    assert bootstrap(errors, sizes, groups=[""] * 60) == bootstrap(errors, sizes), "the unknown are not one speaker"


def test_speakers_who_differ_widen_the_interval() -> None:
    errors, sizes = [1] * 100 + [5] * 100, [10] * 200
    speakers = [f"s{n // 20}" for n in range(200)]  # five good ones, five bad ones
    alone, whole = bootstrap(errors, sizes), bootstrap(errors, sizes, groups=speakers)
    assert whole.high - whole.low > 3 * (alone.high - alone.low)


def test_draws_of_empty_references_change_nothing() -> None:
    found = bootstrap([2, 0], [4, 0], rounds=50)  # a quarter of the draws has no words
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    assert bootstrap([2, 7], [4, 0]).high > 9 / 4 - 1e-12, "but insertions against nothing are errors"


def by_weights(first: list[int], second: list[int], sizes: list[int], rounds: int) -> np.ndarray:
    """The paired draws over again: how often each utterance is taken, as one multinomial a draw."""
    taken = np.random.default_rng(9).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=rounds)
    return (taken @ first - taken @ second) / (taken @ sizes)


def test_intervals_agree_with_another_way_to_draw() -> None:
    first, sizes = corpus(300)
    second = np.random.default_rng(2).binomial(sizes, 0.22).tolist()
    paired, single = paired_bootstrap(first, second, sizes), bootstrap(first, sizes)
    for found, other in (
        (paired, by_weights(first, second, sizes, 4000)),
        (single, by_weights(first, [0] * 300, sizes, 4000)),
    ):
        assert [found.low, found.high] == pytest.approx(list(np.quantile(other, [0.025, 0.975])), abs=0.002)
    turned = np.mean(np.sign(paired.value) * by_weights(first, second, sizes, 4000) <= 0)
    assert paired.p == pytest.approx(2 * turned, abs=0.04)


@given(sizes_of, st.data())
def test_a_system_does_not_differ_from_itself(sizes: list[int], data: st.DataObject) -> None:
    errors = [data.draw(st.integers(0, size)) for size in sizes]
    same = paired_bootstrap(errors, errors, sizes, rounds=50)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


@given(sizes_of, st.data())
@example([1, 1], None)
def test_the_other_way_round_the_sign_turns_and_p_stays(sizes: list[int], data: st.DataObject | None) -> None:
    draw: Callable[[], list[int]] = lambda: [data.draw(st.integers(0, size)) if data else 1 for size in sizes]  # noqa: E731
    first, second = draw(), draw()
    there, back = paired_bootstrap(first, second, sizes, rounds=99), paired_bootstrap(second, first, sizes, rounds=99)
    assert (there.value, there.p) == (-back.value, back.p)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert 0 <= there.p <= 1
    nothing = paired_bootstrap(first, [0] * len(sizes), sizes, rounds=99)
    alone = bootstrap(first, sizes, rounds=99)
    assert (nothing.value, nothing.low, nothing.high) == (alone.value, alone.low, alone.high), "the same draws"


def test_pairing_sees_what_two_intervals_hide() -> None:
    second, sizes = corpus(200)
    first = [wrong + (n % 4 == 0) for n, wrong in enumerate(second)]  # one more error in every fourth utterance
    worse, alone = paired_bootstrap(first, second, sizes), [bootstrap(errors, sizes) for errors in (first, second)]
    assert alone[0].low < alone[1].high, "the two intervals overlap"
    assert (worse.p, worse.low > 0) == (0, True)
    speakers = ["a", "b"] * 100  # only the first has the errors
    assert paired_bootstrap(first, second, sizes, groups=speakers).p > 0.05, "two speakers prove little"
    assert paired_bootstrap(first, second, sizes, seed=1).low != worse.low


@pytest.mark.parametrize("columns", [([1], [4]), ([1], [2], [4])])
def test_wrong_arguments_name_the_value(columns: tuple[list[int], ...]) -> None:
    call = bootstrap if len(columns) == 2 else paired_bootstrap
    with pytest.raises(OptionError, match="rounds must be at least 1, got 0"):
        call(*columns, rounds=0)
    with pytest.raises(OptionError, match=r"equally many.*, 2\]"):
        call(*columns, groups=["a", "b"])
    with pytest.raises(OptionError, match="all 1 utterances are empty"):
        call(*columns[:-1], [0])
    with pytest.raises(OptionError, match="all 0 utterances are empty"):
        call(*([] for _ in columns))
    with pytest.raises(OptionError, match="equally many"):
        call(*columns[:-1], [4, 4])


def test_a_difference_of_means_counts_every_part_alike_however_long_it_is() -> None:
    """One part alone is the plain test; a long part does not drown a short one; what is the same is no difference."""
    errors, none, sizes = [3, 4, 2, 5, 3, 4], [0] * 6, [10] * 6
    alone, plain = paired_bootstrap_of_means([(errors, none, sizes)]), paired_bootstrap(errors, none, sizes)
    assert alone == plain
    long = ([1] * 200, [2] * 200, [10] * 200)
    both = paired_bootstrap_of_means([(errors, none, sizes), long])
    assert both.value == pytest.approx((plain.value - 0.1) / 2)
    assert both.low <= both.value <= both.high
    pooled = paired_bootstrap(errors + long[0], none + long[1], sizes + long[2])
    assert pooled.value < 0 < both.value
    same = paired_bootstrap_of_means([(errors, errors, sizes), (long[0], long[0], long[2])])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
