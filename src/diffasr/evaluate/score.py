"""References and hypotheses in; edits counted, error rates, and how far chance could have moved them, out.

The bootstrap draws utterances, or whole speakers, with replacement and takes the percentiles of the corpus rates:
M. Bisani and H. Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, ICASSP 2004.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from diffasr.errors import OptionError
from diffasr.evaluate.normalise import normalise
from diffasr.text import LANGUAGES

TAILS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a fewest-edits alignment of hypothesis to reference holds; ``+`` pools, and ``Counts()`` is nothing."""

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def size(self) -> int:
        """Length of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors over reference length: above 1 for runaway text; of an empty reference 0 if met, else infinite."""
        if not self.size:
            return inf if self.errors else 0.0
        return self.errors / self.size

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            hits=self.hits + other.hits,
            substitutions=self.substitutions + other.substitutions,
            insertions=self.insertions + other.insertions,
            deletions=self.deletions + other.deletions,
        )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A corpus error rate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A first system's corpus rate minus a second's, the bounds of its 95 % interval, and how easily its sign turns."""

    value: float
    low: float
    high: float
    p: float
    """Twice the share of draws with no difference or the other sign, at most 1; 0 means fewer than one draw."""


def word_counts(reference: str, hypothesis: str) -> Counts:
    """Edits between two normalised texts in words, cut at white space."""
    return _counts(reference.split(), hypothesis.split())


def character_counts(reference: str, hypothesis: str) -> Counts:
    """Edits between two normalised texts in characters (code points); spaces count."""
    return _counts(reference, hypothesis)


def _counts(reference: Sequence[str], hypothesis: Sequence[str]) -> Counts:
    try:
        from rapidfuzz.distance import Levenshtein
    except ModuleNotFoundError as error:
        raise OptionError("scoring needs rapidfuzz: pip install 'diffasr[evaluate]'") from error
    kinds = Counter(edit.tag for edit in Levenshtein.editops(reference, hypothesis))
    return Counts(
        hits=len(reference) - kinds["replace"] - kinds["delete"],
        substitutions=kinds["replace"],
        insertions=kinds["insert"],
        deletions=kinds["delete"],
    )


def character_errors(reference: str, hypothesis: str, language: str) -> tuple[int, int]:
    """Edits and characters of one utterance after ``normalise``; spaces count."""
    counts = character_counts(normalise(reference, language), normalise(hypothesis, language))
    return counts.errors, counts.size


def error_rates(pairs: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """Corpus CER of each language from (reference, hypothesis, language): all edits over all characters."""
    edits = dict.fromkeys(LANGUAGES, 0)
    characters = dict.fromkeys(LANGUAGES, 0)
    for reference, hypothesis, language in pairs:
        wrong, size = character_errors(reference, hypothesis, language)
        edits[language] += wrong
        characters[language] += size
    return {code: edits[code] / characters[code] for code in LANGUAGES if characters[code]}


def bootstrap(
    errors: Sequence[int],
    sizes: Sequence[int],
    *,
    groups: Sequence[str] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Corpus rate with its 95 % interval, from the errors and the reference length of each utterance.

    ``groups`` names the speaker of each utterance: speakers are then drawn whole; an empty name is a speaker alone.
    ``rounds`` is the number of draws. Raises OptionError where lengths differ or all references are empty.
    """
    table = _table((errors, sizes), groups, rounds)
    value = float(table[0].sum() / table[-1].sum())
    low, high = np.quantile(_drawn_rates(table, value, rounds, seed), TAILS)
    return Interval(value=value, low=float(low), high=float(high))


def paired_bootstrap(
    first: Sequence[int],
    second: Sequence[int],
    sizes: Sequence[int],
    *,
    groups: Sequence[str] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Difference:
    """Corpus rate of ``first`` minus that of ``second``: the errors of two systems on the same utterances.

    Each draw takes the same utterances for both; other arguments and errors are those of ``bootstrap``.
    """
    return _difference(*_drawn_differences((first, second, sizes), groups, rounds, seed))


def paired_bootstrap_of_means(
    parts: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]], *, rounds: int = 1000, seed: int = 0
) -> Difference:
    """The same of the mean rate over several parts, such as languages: errors of both systems, and sizes, of each.

    Utterances are drawn within each part, so that every part counts alike in every draw.
    """
    drawn = [_drawn_differences(part, None, rounds, seed + n) for n, part in enumerate(parts)]
    return _difference(float(np.mean([value for value, _ in drawn])), np.mean([rates for _, rates in drawn], axis=0))


def _drawn_differences(
    columns: tuple[Sequence[int], Sequence[int], Sequence[int]], groups: Sequence[str] | None, rounds: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    ours, theirs, size = _table(columns, groups, rounds)
    table = np.stack([ours - theirs, size])
    value = float(table[0].sum() / table[-1].sum())
    return value, _drawn_rates(table, value, rounds, seed)


def _difference(value: float, rates: NDArray[np.float64]) -> Difference:
    low, high = np.quantile(rates, TAILS)
    turned = float(np.mean(np.sign(value) * rates <= 0))
    return Difference(value=value, low=float(low), high=float(high), p=min(1.0, 2 * turned))


def _table(columns: Sequence[Sequence[int]], groups: Sequence[str] | None, rounds: int) -> NDArray[np.float64]:
    """Sums of each column over each group, (columns, groups): a draw of groups is a draw of these."""
    *_, sizes = columns
    lengths = [len(column) for column in (*columns, *([] if groups is None else [groups]))]
    if len(set(lengths)) > 1:
        raise OptionError(f"errors, sizes and groups must be equally many, one an utterance; got {lengths}")
    if sum(sizes) <= 0:
        raise OptionError(f"the references of all {len(sizes)} utterances are empty: there is no rate; leave them out")
    if rounds < 1:
        raise OptionError(f"rounds must be at least 1, got {rounds}")
    numbers: dict[str | int, int] = {}
    names = range(len(sizes)) if groups is None else [name or n for n, name in enumerate(groups)]
    group = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.stack([np.bincount(group, weights=column) for column in columns])


def _drawn_rates(table: NDArray[np.float64], value: float, rounds: int, seed: int) -> NDArray[np.float64]:
    """Corpus rate of each of ``rounds`` draws, (rounds,); ``value`` for a draw of nothing but empty references."""
    generator = np.random.default_rng(seed)
    width = table.shape[1]
    draws = (generator.integers(width, size=width) for _ in range(rounds))
    errors, sizes = np.stack([table[:, draw].sum(1) for draw in draws], axis=1)  # (rounds,) each
    return np.where(sizes > 0, errors / np.maximum(sizes, 1), value)
