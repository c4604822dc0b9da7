"""Cues hold every letter, at its time, within the shape; pieces rise in time and never overlap."""

import unicodedata
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffasr.errors import OptionError
from diffasr.formats.cues import LONGEST_MS, Cue, LineShape, cues_of
from diffasr.formats.pieces import Piece, joined, milliseconds, pieces_of, spread
from diffasr.transcript import Segment, Transcript, Word

PLAIN = LineShape()
PARTS = [
    "so",
    "then",
    "Yes.",
    "No!",
    "a-b",
    "Wort,",
    "你",
    "好。",
    "，",
    "“",
    "”",
    "(",
    ")",
    "है।",
    "é",
    "?",
    "x" * 50,
    "\n",
]
MANDARIN = "今天天气很好，我们去公园散步。他说：“好的，Python很有意思！”然后大家（一共五个人）一起出发了。"


def word_at(text: str, start: float, end: float, probability: float = 0.5) -> Word:
    return Word(word=text, start=start, end=end, probability=probability)


def one_segment(text: str, words: tuple[Word, ...] = (), end: float = 5.0) -> Transcript:
    segment = Segment(start=0.0, end=end, text=text, language="en", avg_logprob=-0.1, steps=8, words=words)
    return Transcript(
        text=text, language="en", language_probability=None, duration=end, segments=(segment,), model="mini"
    )


def spoken(text: str, *, each: float = 0.25, gap: float = 0.05) -> Transcript:
    """A word after the other, all of one length."""
    words = [word_at(t, n * (each + gap), n * (each + gap) + each) for n, t in enumerate(text.split())]
    return one_segment(text, tuple(words), end=len(words) * (each + gap))


def times_of(transcript: Transcript) -> list[tuple[str, int, int]]:
    return [(p.text, p.start_ms, p.end_ms) for pieces in pieces_of(transcript) for p in pieces]


def texts_of(cues: list[Cue]) -> list[str]:
    return [joined(cue.pieces) for cue in cues]


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Any text, in which any words were heard at any time of their segment, in any order."""
    seconds = st.one_of(st.floats(0, 30), st.floats(0, 360_000), st.sampled_from([59.9996, 3599.9995, 36_000.0]))
    edges = sorted(draw(st.lists(seconds, max_size=8)))
    segments = []
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        parts = draw(st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=25))
        words = []
        for part in parts:
            if draw(st.booleans()):
                times = sorted(draw(st.tuples(st.floats(start, end), st.floats(start, end))))
                words.append(word_at(part, *times))
        text = draw(st.sampled_from(["", " "])).join(parts)
        segments.append(
            Segment(start=start, end=end, text=text, language="zh", avg_logprob=-1.0, steps=1, words=tuple(words))
        )
    return Transcript(
        text=" ".join(s.text for s in segments),
        language="zh",
        language_probability=0.5,
        duration=draw(st.floats(0, 1000)) if not edges else edges[-1],
        segments=tuple(segments),
        model="mini",
    )


FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHAPES = st.builds(
    LineShape,
    max_line_width=st.none() | st.integers(1, 60),
    max_line_count=st.none() | st.integers(1, 4),
    max_words_per_line=st.none() | st.integers(1, 8),
)


def letters_of(text: str) -> str:
    """Everything but spaces and control characters, independent of how the module cleans."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c for c in composed if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs"))


@FEW
@given(transcripts(), SHAPES)
def test_cues_hold_every_letter_and_never_overlap(transcript: Transcript, shape: LineShape) -> None:
    cues = cues_of(transcript, shape)
    shown = letters_of("".join(texts_of(cues)))
    assert shown == "".join(letters_of(segment.text) for segment in transcript.segments)
    assert all(0 <= cue.start_ms < cue.end_ms for cue in cues), "every cue lasts a millisecond"
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(cues))
    pieces = [piece for cue in cues for piece in cue.pieces]
    assert all(piece.start_ms < piece.end_ms for piece in pieces)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(pieces))
    ends = [milliseconds(transcript.duration), *(milliseconds(s.end) for s in transcript.segments), len(pieces)]
    assert all(piece.end_ms <= max(ends) for piece in pieces), "nothing is said after the end"


@FEW
@given(transcripts(), SHAPES)
def test_no_cue_is_larger_than_its_shape(transcript: Transcript, shape: LineShape) -> None:
    for cue in cues_of(transcript, shape):
        assert len(cue.lines) <= shape.lines
        assert len(cue.pieces) == 1 or cue.end_ms - cue.start_ms <= LONGEST_MS
        for line in cue.lines:
            assert len(line) <= (shape.max_words_per_line or len(line))
            width = sum(p.width for p in line) + sum(p.has_space for p in line[1:])
            assert len(line) == 1 or width <= shape.columns


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12), st.integers(0, 50))
def test_spread_mends_what_is_broken_and_nothing_else(spans: list[tuple[int, int]], limit: int) -> None:
    placed = spread(spans, limit)
    assert all(start < end for start, end in placed)
    assert all(a[1] <= b[0] for a, b in pairwise(placed))
    assert all(start >= 0 and end <= max(limit, len(spans)) for start, end in placed)
    assert spread(placed, max(limit, len(spans))) == placed, "what is in order stays"


def test_words_give_their_times_to_the_millisecond() -> None:
    transcript = spoken("one two, three.")
    assert times_of(transcript) == [("one", 0, 250), ("two,", 300, 550), ("three.", 600, 850)]


def test_zero_length_at_the_very_end_stays_inside_the_recording() -> None:
    words = (word_at("good", 1.0, 2.0), word_at("bye", 2.0, 2.0))
    assert times_of(one_segment("good bye", words, end=2.0)) == [("good", 1000, 1999), ("bye", 1999, 2000)]


def test_a_word_that_was_not_heard_lies_between_those_that_were() -> None:
    words = (word_at("one", 1.0, 2.0), word_at("one", 4.0, 4.5))
    transcript = one_segment("one two four one end", words, end=5.0)
    expected = [
        ("one", 1000, 2000),
        ("two", 2000, 2857),
        ("four", 2857, 4000),
        ("one", 4000, 4500),
        ("end", 4500, 5000),
    ]
    assert times_of(transcript) == expected


def test_a_segment_without_words_is_shared_out_by_letters() -> None:
    assert times_of(one_segment("ab cdef", end=3.0)) == [("ab", 0, 1000), ("cdef", 1000, 3000)]


def test_a_heard_word_that_is_not_in_the_text_changes_nothing() -> None:
    words = (word_at("one", 0.0, 1.0), word_at("noise", 1.0, 2.0), word_at("two", 2.0, 3.0))
    assert times_of(one_segment("one two", words)) == [("one", 0, 1000), ("two", 2000, 3000)]


def test_a_word_is_not_found_inside_another() -> None:
    assert times_of(one_segment("cats cat", (word_at("cat", 2.0, 3.0),)))[1] == ("cat", 2000, 3000)


def test_a_word_of_several_pieces_is_shared_out() -> None:
    transcript = one_segment("你好。", (word_at("你好。", 1.0, 3.0),))
    assert times_of(transcript) == [("你", 1000, 2000), ("好。", 2000, 3000)]


def test_probability_is_that_of_the_least_certain_word_or_of_the_segment() -> None:
    words = (word_at("sure", 0.0, 1.0, 0.9), word_at("vrai", 1.0, 2.0, 0.7), word_at("?", 2.0, 3.0, 0.2))
    (pieces,) = pieces_of(one_segment("sure vrai ? unheard", words))
    assert [p.probability for p in pieces] == [0.9, 0.2, pytest.approx(0.904837)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("你好，world。好", "你|好，|world。|好"),
        ("他说：“好的！”他", "他|说：|“好|的！”|他"),
        ("你 好。 再见", "你|好。|再|见"),
        ("花（3.5%）的", "花|（3.5%）|的"),
        ("Ça va ? « Oui » !", "Ça|_va ?|_« Oui » !"),
        ("„Ja“ sagte »sie« laut", "„Ja“|_sagte|_»sie«|_laut"),
        ("¿ Qué ?", "¿ Qué ?"),
        ("rock & roll", "rock|_&|_roll"),
        ("안녕 하세요", "안녕|_하세요"),
        ("यह क्षत्रिय है।", "यह|_क्षत्रिय|_है।"),
        ("e\u0301te\u0301 tab\there\x00\n\nnow", "été|_tab|_here|_now"),
    ],
)
def test_where_a_line_may_break(text: str, pieces: str) -> None:
    (found,) = pieces_of(one_segment(text))
    assert "|".join("_" * p.has_space + p.text for p in found) == pieces


@pytest.mark.parametrize("width", [2, 5, 6, 10, 11, 16])
def test_mandarin_lines_have_no_spaces_and_no_closing_mark_in_front(width: int) -> None:
    cues = cues_of(one_segment(MANDARIN, end=12.0), LineShape(max_line_width=width))
    lines = [joined(line) for cue in cues for line in cue.lines]
    assert "".join(lines) == MANDARIN
    assert not any(line[0] in "，。：！”）" for line in lines)
    assert not any(line[-1] in "“（" for line in lines)
    if width >= 10:  # no single piece is wider
        assert all(sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line) <= width for line in lines)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ({}, ["one two three four five six"]),
        ({"max_line_width": 13}, ["one two three\nfour five six"]),
        ({"max_line_width": 13, "max_line_count": 1}, ["one two three", "four five six"]),
        ({"max_line_count": 1}, ["one two three four five six"]),
        ({"max_words_per_line": 2}, ["one two", "three four", "five six"]),
        ({"max_words_per_line": 2, "max_line_count": 3}, ["one two\nthree four\nfive six"]),
        ({"max_words_per_line": 1, "max_line_width": 7, "max_line_count": 6}, ["one\ntwo\nthree\nfour\nfive\nsix"]),
    ],
)
def test_every_limit_changes_the_lines(shape: dict[str, Any], shown: list[str]) -> None:
    cues = cues_of(spoken("one two three four five six"), LineShape(**shape))
    assert ["\n".join(joined(line) for line in cue.lines) for cue in cues] == shown


def test_defaults_of_a_shape_are_those_of_the_screen() -> None:
    text = "a shape that asks for little takes the rest from television, where two lines do"
    (cue,) = cues_of(spoken(text), LineShape(max_line_count=2))
    assert len(cue.lines) == 2
    assert len(cues_of(spoken(text), LineShape(max_line_count=1))) == 2
    assert [len(cue.lines) for cue in cues_of(spoken(text), PLAIN)] == [1]


def test_without_a_shape_a_cue_is_a_segment_unless_too_wide_or_too_long() -> None:
    assert len(cues_of(spoken("First. Second one. Third of them."), PLAIN)) == 1
    assert texts_of(cues_of(spoken("ten " * 18 + "words. " + "More " * 10, each=0.1), PLAIN)) == [
        ("ten " * 18).strip() + " words.",
        ("More " * 10).strip(),
    ]  # fmt: skip
    slow = cues_of(spoken("one two three four", each=3.0), PLAIN)
    assert texts_of(slow) == ["one two", "three four"]


def test_a_shape_cuts_at_sentences_and_pauses_and_not_at_every_full_stop() -> None:
    shape = LineShape(max_line_count=2)
    text = "We saw Dr. Who on the 3. of May with J. Doe. Yes. So it was at last."
    assert texts_of(cues_of(spoken(text), shape)) == [
        "We saw Dr. Who on the 3. of May with J. Doe.",
        "Yes. So it was at last.",
    ]
    words = (word_at("before", 0.0, 0.5), word_at("after", 1.5, 2.0))
    assert texts_of(cues_of(one_segment("before after", words), shape)) == ["before", "after"]
    assert texts_of(cues_of(one_segment("before after", words), PLAIN)) == ["before after"]


def test_a_cut_prefers_the_end_of_a_clause() -> None:
    text = "the first clause is this one here, the second is that"
    assert texts_of(cues_of(spoken(text), LineShape(max_line_width=40, max_line_count=1))) == [
        "the first clause is this one here,",
        "the second is that",
    ]


def test_lines_are_of_like_width() -> None:
    (cue,) = cues_of(spoken("these two lines could be a long one and an orphan"), LineShape(max_line_width=42))
    first, second = (len(joined(line)) for line in cue.lines)
    assert abs(first - second) <= 6


def test_a_word_wider_than_the_line_stands_alone_and_whole() -> None:
    cues = cues_of(spoken("die Donaudampfschifffahrt fährt"), LineShape(max_line_width=8, max_line_count=1))
    assert texts_of(cues) == ["die", "Donaudampfschifffahrt", "fährt"]


@pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_words_per_line"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_bad_limits_are_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} must be .* at least 1.*got {value}"):
        LineShape(**{name: value})


@pytest.mark.parametrize(("text", "width"), [("你好。", 6), ("क्षत्रिय", 5), ("e\u0301", 1), ("ab", 2), ("\u200b", 0)])
def test_width_counts_columns(text: str, width: int) -> None:
    assert Piece(text=text, has_space=False, start_ms=0, end_ms=1, probability=1.0).width == width


def test_an_hour_in_one_segment_is_cut_to_the_end() -> None:
    cues = cues_of(spoken("and so on. " * 200, each=6.0), LineShape(max_words_per_line=4))
    assert sum(len(cue.pieces) for cue in cues) == 600
