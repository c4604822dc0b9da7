"""Bins hold what they say; drafts end where the text does; confidence is counted as by hand and by another formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import WORDS, row

from diffasr.evaluate.breakdown import BINS, by_duration, confidence, draft_errors, reliability, right_words
from diffasr.evaluate.page import render
from diffasr.evaluate.report import build_report
from diffasr.evaluate.tally import tally


def test_each_recording_is_in_one_bin_and_the_bins_pool_to_the_whole() -> None:
    lengths = [0.5, 2.99, 3.0, 5.9, 6.0, 10.0, 19.9, 60.0]
    rows = [row(n, "ctc", WORDS[n][1:], duration=s, language="en" if n else "de") for n, s in enumerate(lengths)]
    report = build_report(rows, "basic", {})
    bins = report["durations"]
    assert bins == by_duration(tally(rows, "basic"))
    assert [(b["from"], b["to"], b["recordings"]) for b in bins] == [
        (0, 3, 2), (3, 6, 2), (6, 10, 1), (10, 20, 2), (20, None, 1),
    ]  # fmt: skip
    assert bins[0]["languages"] == {"en": 1, "de": 1}
    whole = next(s for s in report["scores"] if s["language"] == "all")["cer"]
    for part in ("hits", "deletions", "size"):
        assert sum(b["cer"][part] for b in bins) == whole[part]
    page = render(report)
    assert "| decoder | 0 to 3 s | 3 to 6 s | 6 to 10 s | 10 to 20 s | from 20 s |" in page
    assert "| recordings | 2 | 2 | 1 | 2 | 1 |" in page


def test_drafts_of_a_text_that_settled_early_stand_until_the_last_step() -> None:
    rows = [
        row(3, "seeded-4", "four", drafts=["xxxx", "foxx", "four"]),
        row(7, "seeded-4", "eleven", drafts=["xxeven"]),
        row(3, "diffusion-4", "four"),
        row(3, "ctc", "four", drafts=[]),
    ]
    (found,) = draft_errors(rows, "basic")
    assert found["cer"] == pytest.approx([6 / 10, 4 / 10, 2 / 10])
    assert (found["system"], found["final"], found["running"], found["texts"]) == ("seeded-4", 0, [2, 1, 1], 2)
    page = render(build_report(rows, "basic", {}))
    assert "| decoder | step 1 | step 2 | step 3 | written | texts |" in page
    assert "| seeded-4 | 60.0 | 40.0 | 20.0 | 0.0 | 2 |" in page


def test_languages_weigh_alike_in_drafts_and_the_last_canvas_counts() -> None:
    rows = [
        row(3, "seeded-2", "four", drafts=["begun", "again", "xxxx", "four"]),
        row(9, "seeded-2", "汉语", drafts=["汉X", "漢語"], language="zh", reference="汉语"),
    ]
    (found,) = draft_errors(rows, "basic")
    assert found["cer"] == pytest.approx([(1 + 0.5) / 2, 0])


def test_words_are_right_where_they_are_aligned_to_their_like() -> None:
    words = [["The", 0.9], ["cat!", 0.8], ["–", 0.1], ["well-known", 0.7], ["sat", 0.6], ["more", 0.2]]
    one = row(0, "seeded-8", "", reference="the bat, well known, sat", words=words)
    assert right_words(one, "basic") == [(0.9, True), (0.8, False), (0.7, True), (0.6, True), (0.2, False)]
    assert right_words(one, "none")[0] == (0.9, False), "the normaliser decides"
    half = row(0, "seeded-8", "", reference="well sat", words=[["well-known", 0.7]])
    assert right_words(half, "basic") == [(0.7, False)], "all of it must be right"
    mandarin = row(0, "seeded-8", "", language="zh", reference="漢語好", words=[["汉", 0.9], ["鱼,", 0.5], ["好", 0.4]])
    assert right_words(mandarin, "basic") == [(0.9, True), (0.5, False), (0.4, True)]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_ece_is_that_of_the_formula(words: list[tuple[float, bool]]) -> None:
    found = reliability(words)
    sure, right = (np.array(column, dtype=float) for column in zip(*words, strict=True))
    place = np.minimum(np.floor(sure * BINS), BINS - 1)
    ece = sum(abs(np.sum((right - sure)[place == b])) for b in range(BINS)) / len(words)
    assert found["ece"] == pytest.approx(ece)
    assert sum(b["words"] for b in found["bins"]) == found["words"] == len(words)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["confidence"] == pytest.approx(sure.mean())
    assert abs(found["accuracy"] - found["confidence"]) <= found["ece"] + 1e-9 <= 1 + 1e-9


def test_confidence_is_told_by_language_and_pooled() -> None:
    rows = [row(3, "seeded-8", "four", words=[["four", 1.0]]), row(3, "ctc", "four", words=[]), row(4, "ctc", "x")]
    rows.append(row(7, "seeded-8", "elf", language="de", reference="zwölf", words=[["elf", 0.5]]))
    found = confidence(rows, "basic")
    assert [(c["language"], c["words"], c["ece"]) for c in found] == [("en", 1, 0), ("de", 1, 0.5), ("all", 2, 0.25)]
    page = render(build_report(rows, "basic", {}))
    assert "## How far words can be trusted on dev (normaliser: basic)" in page
    assert "| seeded-8 | 0.0 (100.0, 100.0) | 50.0 (50.0, 0.0) | 25.0 (75.0, 50.0) |" in page
    assert "trusted" not in render(build_report(rows[1:3], "basic", {}))
