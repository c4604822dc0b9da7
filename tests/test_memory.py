"""Keys and values that several rows share give what copies of them give."""

import pytest
import torch
from conftest import random_model, random_speech, wake
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffasr.model.memory import Memory, chosen, silent

MODEL = wake(random_model())


def memory_of(rows: int) -> Memory:
    return MODEL.network.prefill(random_speech([40, 12, 25][:rows]), None).memory


def spread(memory: Memory, count: int) -> list[Tensor]:
    """Each row's own keys and values, and its mask."""
    each = count // len(memory[0][0][0])
    parts = [part for pair in memory[0] for part in pair] + ([] if memory[1] is None else [memory[1]])
    return [part.repeat_interleave(each, dim=0) for part in parts]


rows_of_three = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(rows_of_three, st.data())
def test_chosen_rows_are_the_rows_and_can_be_chosen_from_again(rows: list[int], data: st.DataObject) -> None:
    memory = memory_of(3)
    once = chosen(memory, torch.tensor(rows), 3)
    assert all(torch.equal(a, b[rows]) for a, b in zip(spread(once, len(rows)), spread(memory, 3), strict=True))
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    twice, both = chosen(once, torch.tensor(again), len(rows)), [rows[n] for n in again]
    assert all(torch.equal(a, b[both]) for a, b in zip(spread(twice, len(both)), spread(memory, 3), strict=True))


def test_rows_that_come_equally_often_are_held_once_and_all_of_them_are_not_copied() -> None:
    memory = memory_of(3)
    votes = chosen(memory, torch.arange(3).repeat_interleave(5), 3)
    assert votes[0][0][0] is memory[0][0][0]
    windows = chosen(votes, torch.arange(5, 15), 15)
    assert len(windows[0][0][0]) == 2, "a whole window left"
    assert len(chosen(votes, torch.tensor([0, 1, 7]), 15)[0][0][0]) == 3, "two of one window and one of the next"


@pytest.mark.parametrize("sharing", [1, 2, 4])
def test_a_step_from_a_shared_memory_is_a_step_from_copies(sharing: int) -> None:
    network, rows = MODEL.network, torch.arange(3).repeat_interleave(sharing)
    cache = network.prefill(random_speech([40, 12, 25]), torch.tensor([0, 4, 5]))
    shared = network.select(cache, rows)
    assert len(shared.memory[0][0][0]) == 3
    canvas = torch.randint(40, (len(rows), 9), generator=torch.Generator().manual_seed(3))
    lengths, hints = torch.arange(len(rows)) % 4 + 6, canvas % 3
    got = network.denoise(canvas, shared, lengths=lengths, hints=hints)
    for row, owner in enumerate(rows.tolist()):
        alone = network.prefill(random_speech([40, 12, 25]), torch.tensor([0, 4, 5]))
        one = network.select(alone, torch.tensor([owner]))
        place = slice(row, row + 1)
        want = network.denoise(canvas[place], one, lengths=lengths[place], hints=hints[place])
        used = int(lengths[row])
        torch.testing.assert_close(got[row, :used], want[0, :used])
    written = network.ar_logits(canvas, shared)[::sharing]
    torch.testing.assert_close(written, network.ar_logits(canvas[::sharing], cache))


def test_without_audio_a_row_says_the_same_whatever_was_said_and_the_others_hear_as_before() -> None:
    network, is_deaf = MODEL.network, torch.tensor([True, False])
    canvas, lengths = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(4)), torch.tensor([6, 6])
    said = []
    for seed in (1, 2):
        cache = network.prefill(random_speech([30, 30], seed=seed), torch.tensor([1, 1]))
        before = [part.clone() for part in spread(cache.memory, 2)]
        deaf = network.without_audio(cache, is_deaf)
        said.append(network.denoise(canvas, deaf, lengths=lengths))
        torch.testing.assert_close(said[-1][1], network.denoise(canvas, cache, lengths=lengths)[1])
        assert all(torch.equal(a, b) for a, b in zip(before, spread(cache.memory, 2), strict=True))
    torch.testing.assert_close(said[0][0], said[1][0])
    assert (said[0][1] - said[1][1]).abs().max() > 0.1
    shared = network.select(cache, torch.tensor([0, 0, 1, 1]))
    half = network.without_audio(shared, torch.tensor([False, True, False, True]))
    four = network.denoise(canvas[[0, 0, 1, 1]], half, lengths=lengths[[0, 0, 1, 1]])
    torch.testing.assert_close(four[1], said[1][0])
    torch.testing.assert_close(four[2], said[1][1])
    assert silent(cache.memory, torch.tensor([False, False]))[1] is cache.memory[1]
