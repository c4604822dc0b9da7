"""Two windows that share some sound become one text: no word lost, none doubled."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.seams import change_over, cut_text, sew
from diffasr.transcript import Gap, Segment, Word

LEXICON = ["river", "stone", "morning", "garden", "seven", "winter", "candle", "bridge", "paper", "silver", "ocean"]


def spoken(count: int, seed: int, step: float = 0.5) -> list[Word]:
    return [
        Word(word=LEXICON[(n * 5 + seed) % len(LEXICON)], start=n * step, end=n * step + 0.8 * step, probability=0.9)
        for n in range(count)
    ]


def segment(words: list[Word], start: float, end: float) -> Segment:
    text = " ".join(w.word for w in words)
    return Segment(
        start=start, end=end, text=text, language="en", avg_logprob=-0.1, steps=1, words=tuple(words)
    )  # fmt: skip


def garbled(word: Word) -> Word:
    """What a window hears of a word at its edge."""
    return replace(word, word=word.word[:2])


@given(
    start=st.floats(4, 8), overlap=st.floats(2, 6), seed=st.integers(0, 10),
    late=st.floats(-0.15, 0.15), hears_edges_badly=st.booleans(),
)  # fmt: skip
def test_no_word_is_lost_or_doubled(
    start: float, overlap: float, seed: int, late: float, hears_edges_badly: bool
) -> None:
    said = spoken(40, seed)
    end = start + overlap
    left = [w for w in said if w.end <= end]
    right = [replace(w, start=w.start + late, end=w.end + late) for w in said if w.start >= start]
    if hears_edges_badly:
        left, right = [*left[:-1], garbled(left[-1])], [garbled(right[0]), *right[1:]]
    before, after = sew(segment(left, 0, end), segment(right, start, 20))
    assert f"{before.text} {after.text}" == " ".join(w.word for w in said)  # type: ignore[union-attr]
    assert before.end == after.start
    assert start <= before.end <= end
    for piece in (before, after):
        assert all(piece.start <= w.start <= w.end <= piece.end for w in piece.words)  # type: ignore[union-attr]


def test_texts_that_have_no_word_in_common_change_over_in_the_middle() -> None:
    left, right = spoken(10, 0), [replace(w, word="xxx") for w in spoken(20, 0)[6:]]
    assert change_over(left, right, 3.0, 5.0) == (8, 2)


def test_the_same_word_said_twice_is_two_words() -> None:
    said = [Word(word="no", start=n * 0.4, end=n * 0.4 + 0.3, probability=0.9) for n in range(20)]
    left, right = said[:12], said[6:]
    keep, go_on = change_over(left, right, 2.4, 4.7)
    assert keep + len(right) - go_on == 20


def test_gaps_leave_the_shared_sound_to_the_text() -> None:
    text, gap = segment(spoken(10, 0), 0, 6), Gap(start=4, end=9, reason="no text")
    assert sew(text, gap) == (text, replace(gap, start=6))
    later = segment(spoken(10, 0), 4, 9)
    assert sew(replace(gap, start=0, end=6), later) == (replace(gap, start=0, end=4), later)
    assert sew(replace(gap, start=0, end=6), gap) == (replace(gap, start=0, end=4), gap)


def test_without_words_the_texts_stay_whole() -> None:
    left, right = (replace(segment(spoken(4, 0), a, b), words=()) for a, b in ((0, 6), (4, 9)))
    assert sew(left, right) == (replace(left, end=5), replace(right, start=5))


def test_a_window_that_heard_only_what_both_did_is_a_gap() -> None:
    left, right = segment(spoken(12, 0), 0, 6), segment(spoken(12, 0)[9:], 4, 9)
    before, after = sew(left, right)
    assert isinstance(after, Gap) or after.text
    texts = [piece.text for piece in (before, after) if isinstance(piece, Segment)]
    assert " ".join(texts) == left.text
    assert after.end == 9


@pytest.mark.parametrize(
    ("text", "words", "part"),
    [("Aber, ja doch!", ["Aber,", "ja", "doch!"], "ja doch!"), ("他走了。", ["他", "走", "了。"], "走了。")],
)
def test_text_is_cut_with_its_own_spaces(text: str, words: list[str], part: str) -> None:
    timed = [Word(word=w, start=n, end=n + 1, probability=1) for n, w in enumerate(words)]
    assert cut_text(text, timed, 1, 3) == part
    assert cut_text(text, timed, 0, 3) == text
    assert cut_text(text, timed, 2, 2) == ""
    assert cut_text("another text", timed, 1, 3) == " ".join(words[1:3])
