"""Laws of alignment: what it finds is the best of all paths that spell the text, found by trying them all."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.align import align
from diffasr.diffusion.ctc import log_softmax

BLANK = 3


def logits_of(slots: int, seed: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).standard_normal((slots, 4), np.float32)


def spelled(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 10**6))
def test_no_other_path_that_spells_the_text_is_likelier(labels: list[int], slots: int, seed: int) -> None:
    logits = logits_of(slots, seed)
    scores = log_softmax(logits)
    totals = {
        path: sum(float(scores[slot, label]) for slot, label in enumerate(path))
        for path in itertools.product(range(4), repeat=slots)
        if spelled(path) == labels
    }
    spans = align(logits, labels, blank=BLANK)
    if not totals:
        assert spans is None
        return
    assert spans is not None
    path = [BLANK] * slots
    for label, span in zip(labels, spans, strict=True):
        path[span.first : span.last + 1] = [label] * (span.last - span.first + 1)
        assert span.log_probability == pytest.approx(float(scores[span.first : span.last + 1, label].max()), abs=1e-5)
        assert span.first <= span.peak <= span.last
        assert span.log_probability == pytest.approx(float(scores[span.peak, label]), abs=1e-5)
    assert totals[tuple(path)] == pytest.approx(max(totals.values()), abs=1e-4)


def test_a_plain_path_is_read_off() -> None:
    logits = 20 * np.eye(4, dtype=np.float32)[[BLANK, 0, 0, BLANK, 0, 2, BLANK]]
    spans = align(logits, [0, 0, 2], blank=BLANK)
    assert spans is not None
    assert [(s.first, s.last) for s in spans] == [(1, 2), (4, 4), (5, 5)]
    assert all(s.log_probability == pytest.approx(0, abs=1e-6) for s in spans)


def test_nothing_said_has_no_spans_and_too_much_has_none_at_all() -> None:
    assert align(logits_of(3, 0), [], blank=BLANK) == []
    assert align(logits_of(0, 0), [], blank=BLANK) == []
    assert align(logits_of(2, 0), [1, 1], blank=BLANK) is None, "a blank belongs between equal neighbours"
    assert align(logits_of(3, 0), [1, 1], blank=BLANK) is not None
