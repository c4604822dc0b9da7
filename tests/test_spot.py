"""Laws of looking for words in CTC's posterior."""

from itertools import pairwise, product

import numpy as np
import pytest

from diffasr.diffusion.spot import Spot, losses, spot

BLANK = 0


def random_losses(slots: int, labels: int, seed: int) -> np.ndarray:
    return losses(np.random.default_rng(seed).standard_normal((slots, labels), np.float32))


def cheapest(lost: np.ndarray, labels: list[int]) -> tuple[float, int, int]:
    """By trying every stretch and every way to say the labels in it: the least loss and where."""
    best = (np.inf, -1, -1)
    for first in range(len(lost)):
        for last in range(first, len(lost)):
            for path in product(sorted({BLANK, *labels}), repeat=last + 1 - first):
                merged = [x for n, x in enumerate(path) if n == 0 or x != path[n - 1]]
                if path[0] != BLANK and path[-1] != BLANK and [x for x in merged if x != BLANK] == labels:
                    loss = -float(sum(lost[first + n, x] for n, x in enumerate(path)))
                    best = min(best, (loss, first, last))
    return best


@pytest.mark.parametrize("labels", [[1], [1, 2], [2, 2], [3, 1, 3]])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_stretch_is_that_of_all_stretches_and_paths(labels: list[int], seed: int) -> None:
    lost = random_losses(5, 4, seed)
    loss, first, last = cheapest(lost, labels)
    found = spot(lost, [labels], blank=BLANK, most=100.0)[0]
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert -float(lost[first : last + 1].max(1).sum()) == 0, "the best label of each audio token loses nothing"
    assert found.last - found.first <= 4


def test_what_ctc_spells_costs_nothing_and_is_where_it_was_said() -> None:
    labels = [BLANK, 1, BLANK, 2, 2, BLANK, 3, BLANK, BLANK, 1, 2, 3]
    found = spot(losses(30 * np.eye(5, dtype=np.float32)[labels]), [[1, 2, 3], [4, 4]], blank=BLANK, most=1.0)
    assert {(s.word, s.first, s.last) for s in found} == {(0, 1, 6), (0, 9, 11)}
    assert all(s.loss == 0 for s in found)


def test_many_words_together_are_each_alone_and_do_not_overlap_themselves() -> None:
    lost, words = random_losses(40, 6, 1), [[1], [2, 3], [4, 4, 1, 5], [5, 4, 3, 2, 1]]
    together = spot(lost, words, blank=BLANK, most=2.0)
    for number, labels in enumerate(words):
        alone = spot(lost, [labels], blank=BLANK, most=2.0)
        mine = sorted((s for s in together if s.word == number), key=lambda s: s.first)
        assert [(s.first, s.last) for s in mine] == sorted((s.first, s.last) for s in alone)
        assert all(a.last < b.first for a, b in pairwise(mine))
    assert together == sorted(together, key=lambda s: s.loss)


def test_more_is_found_where_more_may_be_lost() -> None:
    lost, words = random_losses(60, 6, 2), [[1, 2], [3, 4, 5]]
    counts = [len(spot(lost, words, blank=BLANK, most=most)) for most in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    for s in spot(lost, words, blank=BLANK, most=0.5):
        assert 0 <= s.loss <= 0.5 * len(words[s.word]) + 1e-6


def test_nothing_is_found_in_nothing() -> None:
    nothing: list[Spot] = []
    assert spot(random_losses(4, 3, 0), [], blank=BLANK, most=1.0) == nothing
    assert spot(np.zeros((0, 3), np.float32), [[1]], blank=BLANK, most=1.0) == nothing
    assert spot(random_losses(2, 3, 0), [[1, 2, 1]], blank=BLANK, most=9.0) == nothing, "three labels need three tokens"
