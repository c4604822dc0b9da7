"""Laws of CTC's best path, of the canvas it asks for, and of the noise put on it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from torch.nn import functional as F

from diffasr.diffusion.ctc import (
    BUCKETS,
    Path,
    best_paths,
    blurred,
    canvas_length,
    consumed,
    fitted,
    heard,
    hint_slots,
    seed_canvas,
)

BLANK = 3
labels = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(st.lists(labels, min_size=1, max_size=4))
def test_best_paths_merge_repeats_and_drop_blanks(rows: list[list[int]]) -> None:
    size = max(map(len, rows)) + 2
    padded = torch.tensor([(row + [4, 1] * size)[:size] for row in rows])  # what lies past the slots is not silence
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(len(rows), size, 5, generator=generator) + 3 * F.one_hot(padded, 5)
    paths = best_paths(logits, torch.tensor([len(row) for row in rows]), blank=BLANK)
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        runs = [(label, [n for n, _ in run]) for label, run in itertools.groupby(enumerate(row), key=lambda x: x[1])]
        assert path.tokens == [label for label, _ in runs if label != BLANK]
        assert path.slots == [places[0] for label, places in runs if label != BLANK]
        shares = logits[number, : len(row)].double().log_softmax(-1)
        assert path.log_probability == pytest.approx(sum(float(shares[n, v]) for n, v in enumerate(row)), rel=1e-4)


def test_silence_has_an_empty_path() -> None:
    (path,) = best_paths(F.one_hot(torch.full((1, 6), BLANK), 5).float(), torch.tensor([6]), blank=BLANK)
    assert path.tokens == path.slots == []


@given(st.integers(0, 400), st.integers(0, 20))
def test_a_canvas_holds_its_text_and_grows_with_it(tokens: int, slack: int) -> None:
    size = canvas_length(tokens, slack=slack)
    assert size in BUCKETS
    assert size > tokens + slack or size == BUCKETS[-1]
    assert size <= canvas_length(tokens + 1, slack=slack)
    assert size <= canvas_length(tokens, slack=slack + 1)
    assert canvas_length(tokens, buckets=[7]) == 7


PATHS = [Path([5, 6, 7], [0, 4, 9], -1.0), Path([], [], -2.0), Path([1] * 9, list(range(9)), -3.0)]


def test_the_seed_is_the_text_and_then_its_end() -> None:
    canvas = seed_canvas(PATHS, torch.tensor([6, 4, 5]), end=2)
    assert canvas.tolist() == [[5, 6, 7, 2, 2, 2], [2] * 6, [1, 1, 1, 1, 1, 2]]


def test_hints_are_the_slots_and_then_nothing() -> None:
    hints = hint_slots(PATHS, 6)
    assert hints.tolist() == [[0, 4, 9, -1, -1, -1], [-1] * 6, [0, 1, 2, 3, 4, 5]]
    assert hints.dtype == seed_canvas(PATHS, torch.tensor([6, 6, 6]), end=2).dtype == torch.int64


def blurs(most: float, seed: int = 0, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(rows, 50, 4)
    return logits, blurred(logits, most=most, generator=torch.Generator().manual_seed(seed))


def test_without_blur_the_logits_stay() -> None:
    before, after = blurs(0.0)
    assert torch.equal(before, after)


def test_full_blur_draws_from_the_posterior_and_rows_differ_in_their_amount() -> None:
    _, after = blurs(1.0)
    right = (after.argmax(-1) == 0).float().mean(1)  # (rows,)
    assert right.max() == 1.0, "a row with little noise keeps the likeliest label"
    assert right.min() < 0.7
    sampled = torch.stack([blurs(1e4, seed=s, rows=1)[1].argmax(-1) for s in range(50)])
    counts = torch.bincount(sampled.flatten(), minlength=4) / sampled.numel()
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.05), "without bound it is uniform"


def test_blur_takes_its_dice_from_the_generator() -> None:
    assert torch.equal(blurs(0.5, seed=1)[1], blurs(0.5, seed=1)[1])
    assert not torch.equal(blurs(0.5, seed=1)[1], blurs(0.5, seed=2)[1])


def test_heard_says_the_best_path_in_tokens_where_they_begin() -> None:
    logits = F.one_hot(torch.tensor([[1, BLANK, 2, 2, 4, BLANK]]), 5).float()
    (path,) = heard(logits, torch.tensor([6]), blank=BLANK, joined=lambda labels: ([sum(labels), 9], [0, 2]))
    (plain,) = best_paths(logits, torch.tensor([6]), blank=BLANK)
    assert path == Path([7, 9], [plain.slots[0], plain.slots[2]], plain.log_probability)


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
