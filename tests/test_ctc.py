"""Laws of CTC's best path, of the canvas it asks for, and of the noise put on it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from diffasr.diffusion.ctc import (
    BUCKETS,
    Path,
    best_path,
    blurred,
    canvas_length,
    consumed,
    fitted,
    log_softmax,
)

BLANK = 3
labels = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(labels)
def test_the_best_path_merges_repeats_and_drops_blanks(row: list[int]) -> None:
    logits = (np.random.default_rng(0).random((len(row), 5)) + 3 * np.eye(5)[row]).astype(np.float32)
    path = best_path(logits, blank=BLANK)
    runs = [(label, [n for n, _ in run]) for label, run in itertools.groupby(enumerate(row), key=lambda x: x[1])]
    assert path.tokens == [label for label, _ in runs if label != BLANK]
    assert path.slots == [places[0] for label, places in runs if label != BLANK]
    shares = torch.from_numpy(logits).double().log_softmax(-1)
    assert path.log_probability == pytest.approx(float(shares[range(len(row)), row].sum()), rel=1e-4)


def test_silence_and_no_sound_at_all_have_an_empty_path() -> None:
    silent = np.eye(5, dtype=np.float32)[[BLANK] * 6]
    for logits in (silent, silent[:0]):
        path = best_path(logits, blank=BLANK)
        assert path.tokens == path.slots == []


def test_log_softmax_is_that_of_torch_and_leaves_the_logits_alone() -> None:
    logits = np.array([[1e4, 0, -1e4], [3, 3, 3], [0.5, -2, 1]], np.float32)
    kept = logits.copy()
    torch.testing.assert_close(torch.from_numpy(log_softmax(logits)), torch.from_numpy(kept).log_softmax(-1))
    assert np.array_equal(logits, kept)


@given(st.integers(0, 400), st.integers(0, 20))
def test_a_canvas_holds_its_text_and_grows_with_it(tokens: int, slack: int) -> None:
    size = canvas_length(tokens, slack=slack)
    assert size in BUCKETS
    assert size > tokens + slack or size == BUCKETS[-1]
    assert size <= canvas_length(tokens + 1, slack=slack)
    assert size <= canvas_length(tokens, slack=slack + 1)
    assert canvas_length(tokens, buckets=[7]) == 7


def blurs(most: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    logits = np.log(np.tile(np.float32([0.5, 0.3, 0.15, 0.05]), (50, 1)))
    return logits, blurred(logits, most=most, generator=np.random.default_rng(seed))


def test_without_blur_the_logits_stay() -> None:
    before, after = blurs(0.0)
    assert np.array_equal(before, after)


def test_full_blur_draws_from_the_posterior_and_clips_differ_in_their_amount() -> None:
    right = [(blurs(1.0, seed)[1].argmax(1) == 0).mean() for seed in range(400)]
    assert max(right) == 1.0, "a clip with little noise keeps the likeliest label"
    assert min(right) < 0.7
    sampled = np.concatenate([blurs(1e4, seed)[1].argmax(1) for seed in range(50)])
    counts = np.bincount(sampled, minlength=4) / len(sampled)
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.05), "without bound it is uniform"


def test_blur_takes_its_dice_from_the_generator() -> None:
    assert np.array_equal(blurs(0.5, seed=1)[1], blurs(0.5, seed=1)[1])
    assert not np.array_equal(blurs(0.5, seed=1)[1], blurs(0.5, seed=2)[1])


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("", 0),
        ("thecat", 2),
        ("thecatsat", 3),
        ("thecatsatdown", 4),
        ("thebatsat", 3),
        ("thecatdown", 4),
        ("thebigcatsat", 3),
        ("thecatsatdownthere", 4),
    ],
    ids=["empty", "a part", "exact", "all", "one wrong", "one missing", "one extra", "more than was heard"],
)
def test_consumed_counts_the_pieces_that_are_written(written: str, count: int) -> None:
    assert consumed(written, ["the", "cat", "sat", "down"]) == count


def test_of_nothing_heard_nothing_is_consumed() -> None:
    assert consumed("the", []) == consumed("", []) == 0


pieces = st.lists(st.text("abc", max_size=3), max_size=6)


@given(st.text("abc", max_size=9), pieces)
def test_consumed_is_the_longest_of_the_cheapest_splits(written: str, heard: list[str]) -> None:
    costs = [Levenshtein.distance(written, "".join(heard[:count])) for count in range(len(heard) + 1)]
    assert consumed(written, heard) == max(n for n, cost in enumerate(costs) if cost == min(costs))


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=6))
def test_who_writes_what_was_heard_consumes_it_piece_by_piece(heard: list[str]) -> None:
    counts = [consumed("".join(heard[:count]), heard) for count in range(len(heard) + 1)]
    assert counts == list(range(len(heard) + 1))


HEARD = Path([5, 6, 7, 8], [0, 4, 9, 11], -1.0)
FILL = [90, 91, 92, 93, 94, 95]


@pytest.mark.parametrize(
    ("tokens", "seeds", "slots"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 8], [0, 4, 9, 11]),
        ([5, 7, 8], [5, 7, 8], [0, 9, 11]),
        ([5, 6, 1, 7, 8], [5, 6, 92, 7, 8], [0, 4, -1, 9, 11]),
        ([5, 1, 7, 8], [5, 6, 7, 8], [0, 4, 9, 11]),
        ([5, 6, 7, 8, 1, 2], [5, 6, 7, 8, 94, 95], [0, 4, 9, 11, -1, -1]),
        ([], [], []),
    ],
    ids=["the same", "heard too much", "missed one", "heard another", "missed the rest", "nothing said"],
)
def test_fitted_puts_what_was_heard_where_it_belongs(tokens: list[int], seeds: list[int], slots: list[int]) -> None:
    assert fitted(HEARD, tokens, fill=FILL) == (seeds, slots)


@given(st.lists(st.integers(0, 4), max_size=9), st.lists(st.integers(0, 4), max_size=9))
def test_fitted_keeps_the_order_of_what_was_heard(heard: list[int], tokens: list[int]) -> None:
    path = Path(heard, [3 * place for place in range(len(heard))], 0.0)
    fill = [100 + place for place in range(12)]
    seeds, slots = fitted(path, tokens, fill=fill)
    assert len(seeds) == len(slots) == len(tokens)
    kept = [slot for slot in slots if slot >= 0]
    assert kept == sorted(set(kept))
    assert all(
        seed == (fill[place] if slot < 0 else heard[slot // 3])
        for place, (seed, slot) in enumerate(zip(seeds, slots, strict=True))
    )
    assert sum(a != b for a, b in zip(seeds, tokens, strict=True)) <= max(len(heard), len(tokens))
    if heard == tokens:
        assert (seeds, slots) == (heard, path.slots)
