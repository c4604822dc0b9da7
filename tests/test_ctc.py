"""Laws of CTC's best path, of the canvas it asks for, and of the errors put into it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from diffasr.diffusion.ctc import (
    BUCKETS,
    Path,
    best_paths,
    canvas_length,
    consumed,
    fitted,
    hint_slots,
    roughen,
    seed_canvas,
)
from diffasr.text import edit_distance

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


def roughened(most: float, seed: int = 0, rows: int = 400) -> tuple[list[Path], list[Path]]:
    before = [Path(list(range(50)), list(range(50)), -1.0) for _ in range(rows)]
    return before, roughen(before, most=most, vocabulary=10**6, generator=torch.Generator().manual_seed(seed))


def test_no_errors_asked_none_made() -> None:
    before, after = roughened(0.0)
    assert after == before


def test_errors_come_at_the_promised_rate_in_three_equal_kinds() -> None:
    _, after = roughened(0.6)
    fates = {"same": 0, "lost": 0, "joined": 0, "replaced": 0}
    per_row = []
    for path in after:
        heard: dict[int, list[int]] = {slot: [] for slot in range(50)}
        for token, slot in zip(path.tokens, path.slots, strict=True):
            heard[slot].append(token)
        row = [
            "lost" if not tokens else "joined" if len(tokens) == 2 else "same" if tokens == [slot] else "replaced"
            for slot, tokens in heard.items()
        ]
        per_row.append(1 - row.count("same") / 50)
        for fate in row:
            fates[fate] += 1
        assert path.slots == sorted(path.slots)
    total = sum(fates.values())
    assert {k: v / total for k, v in fates.items()} == pytest.approx(
        {"same": 0.7, "lost": 0.1, "joined": 0.1, "replaced": 0.1}, abs=0.03
    )
    assert min(per_row) < 0.05, "rows differ: some are nearly clean"
    assert max(per_row) > 0.5


def test_roughening_takes_its_dice_from_the_generator() -> None:
    assert roughened(0.5, seed=1, rows=5)[1] == roughened(0.5, seed=1, rows=5)[1]
    assert roughened(0.5, seed=1, rows=5)[1] != roughened(0.5, seed=2, rows=5)[1]
    assert roughen([], most=0.5, vocabulary=9, generator=torch.Generator()) == []


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
    costs = [edit_distance(written, "".join(heard[:count])) for count in range(len(heard) + 1)]
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
