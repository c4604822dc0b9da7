"""The same of a batch as of its rows one by one, and how a batch of canvases starts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from diffasr.diffusion.batched import best_paths, blurred, heard, hint_slots, seed_canvas
from diffasr.diffusion.ctc import Path, best_path

BLANK = 3
labels = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(st.lists(labels, min_size=1, max_size=4))
def test_best_paths_are_those_of_the_rows_alone(rows: list[list[int]]) -> None:
    size = max(map(len, rows)) + 2
    padded = torch.tensor([(row + [4, 1] * size)[:size] for row in rows])  # what lies past the slots is not silence
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(len(rows), size, 5, generator=generator) + 3 * F.one_hot(padded, 5)
    paths = best_paths(logits, torch.tensor([len(row) for row in rows]), blank=BLANK)
    for row, said, path in zip(rows, logits.numpy(), paths, strict=True):
        alone = best_path(said[: len(row)], blank=BLANK)
        assert (path.tokens, path.slots) == (alone.tokens, alone.slots)
        assert path.log_probability == pytest.approx(alone.log_probability, rel=1e-4)


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
