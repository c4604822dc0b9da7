"""CTC's probability of a text: against the sum over every path, written out."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from diffasr.diffusion.lattice import NEVER, Lattice, Sound, both_ways
from diffasr.text import Spelling

LABELS = {"a": 1, "b": 2, "ab": 3, "ba": 4}  # 0 is the blank; "ab" can be spelled in two ways
SPELLING = Spelling(
    names=["a", "b", "ab", "ba", "aba"], labels=LABELS, mirrored={text[::-1]: label for text, label in LABELS.items()},
    longer={"a": [3], "b": [4]}, longest=2,
)  # fmt: skip
WRITING = {label: text for text, label in LABELS.items()}
SLOTS = 5
TEXTS = ["a", "b", "ab", "ba", "aa", "aba", "abab", "bb"]


def posterior(seed: int = 0, slots: int = SLOTS) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(slots, 5)) * 1.5
    return np.asarray(scores - np.log(np.exp(scores).sum(1, keepdims=True)), np.float32)


def said(path: tuple[int, ...]) -> str:
    """The text of a path: repeats merged, blanks dropped."""
    kept = [label for n, label in enumerate(path) if label and (n == 0 or path[n - 1] != label)]
    return "".join(WRITING[label] for label in kept)


def by_hand(log_probs: np.ndarray, counts: Callable[[str], bool]) -> float:
    total = sum(
        math.exp(sum(float(log_probs[n, label]) for n, label in enumerate(path)))
        for path in product(range(5), repeat=len(log_probs))
        if counts(said(path))
    )
    return math.log(total)


@pytest.fixture(scope="module")
def lattices() -> tuple[Lattice, Lattice]:
    return both_ways(Sound(posterior(), blank=0), SPELLING)


@pytest.mark.parametrize("text", ["", *TEXTS])
def test_whole_sums_over_all_paths_and_spellings(text: str, lattices: tuple[Lattice, Lattice]) -> None:
    wanted = by_hand(posterior(), lambda found: found == text)
    assert lattices[0].whole(text) == pytest.approx(wanted, abs=1e-4)
    assert lattices[1].whole(text[::-1]) == pytest.approx(wanted, abs=1e-4), "the clip reversed says the text reversed"


@pytest.mark.parametrize("text", TEXTS)
def test_begins_sums_over_all_that_goes_on(text: str, lattices: tuple[Lattice, Lattice]) -> None:
    wanted = by_hand(posterior(), lambda found: found.startswith(text))
    assert lattices[0].begins(text) == pytest.approx(wanted, abs=1e-4)


def test_everything_begins_with_nothing(lattices: tuple[Lattice, Lattice]) -> None:
    assert lattices[0].begins("") == 0.0


@pytest.mark.parametrize(
    ("text", "behind"),
    [("a", "b"), ("ab", "a"), ("b", "ab"), ("", "ab"), ("ab", ""), ("a", "ba"), ("a", "a"), ("ab", "ab")],
)
def test_two_halves_joined_are_the_whole(text: str, behind: str, lattices: tuple[Lattice, Lattice]) -> None:
    there, back = lattices
    assert there.joined(text, behind, back) == pytest.approx(there.whole(text + behind), abs=1e-4)


def test_what_was_asked_before_changes_nothing(lattices: tuple[Lattice, Lattice]) -> None:
    asked, fresh = lattices[0], Lattice(Sound(posterior(), blank=0), LABELS, SPELLING)
    for text in TEXTS:
        asked.whole(text)
        asked.begins(text)
    assert fresh.whole("abab") == asked.whole("abab") and fresh.begins("ab") == asked.begins("ab")


def test_what_has_no_spelling_or_no_time_is_impossible() -> None:
    short = Lattice(Sound(posterior(slots=1), blank=0), LABELS, SPELLING)
    assert short.whole("aa") <= NEVER / 2, "two labels need two slots"
    assert short.whole("xyz") <= NEVER / 2 and short.begins("ax") <= NEVER / 2
