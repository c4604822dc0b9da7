"""Raw rows in; the edits of each recording by each system, and rates of some of them, alone or paired, out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffasr.evaluate.folder import Row
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import (
    Counts,
    bootstrap,
    character_counts,
    paired_bootstrap,
    paired_bootstrap_of_means,
    word_counts,
)

ALL = "all"
"""Stands for a language where all are pooled."""
SPACELESS = ("zh",)
"""Languages without words to count."""


@dataclass(kw_only=True)
class Tally:
    """One recording as one system wrote it, the seeds pooled."""

    language: str
    speaker: str
    duration: float = 0.0
    words: Counts = field(default_factory=Counts)
    characters: Counts = field(default_factory=Counts)
    runs: int = 0
    wrong: int = 0
    empty: int = 0
    runaway: int = 0

    def add(self, row: Row, normaliser: str) -> None:
        """Count one row in."""
        reference, hypothesis = (
            normalise(row[side], self.language, normaliser) for side in ("reference", "hypothesis")
        )
        if self.language not in SPACELESS:
            self.words += word_counts(reference, hypothesis)
        self.characters += character_counts(reference, hypothesis)
        self.runs += 1
        self.wrong += reference != hypothesis
        self.empty += not hypothesis
        self.runaway += len(hypothesis) > 2 * len(reference) + 20


Tallies = dict[tuple[str, str], dict[str, Tally]]
"""Of each set and system, by recording."""


def tally(rows: Iterable[Row], normaliser: str) -> Tallies:
    """Count every row. Raises OptionError for an unknown normaliser."""
    found: Tallies = {}
    for row in rows:
        mine = found.setdefault((row["set"], row["system"]), {})
        fresh = Tally(language=row["language"], speaker=row.get("speaker") or "", duration=row["duration"])
        mine.setdefault(row["id"], fresh).add(row, normaliser)
    return found


def measure(counts: Sequence[Counts], tallies: Sequence[Tally]) -> dict[str, Any] | None:
    """A rate with its intervals and what it is made of; None where the references hold nothing to count."""
    whole = sum(counts, Counts())
    if not whole.size:
        return None
    errors, sizes = [c.errors for c in counts], [c.size for c in counts]
    found: dict[str, Any] = asdict(bootstrap(errors, sizes)) | asdict(whole) | {"size": whole.size}
    speakers = [t.speaker for t in tallies]
    if all(speakers) and len(set(speakers)) > 1:
        interval = bootstrap(errors, sizes, groups=speakers)
        found |= {"speakers": len(set(speakers)), "low_by_speaker": interval.low, "high_by_speaker": interval.high}
    return found


def paired(
    first: Mapping[str, Tally], second: Mapping[str, Tally], *, language: str = ALL, measure: str = "characters"
) -> dict[str, Any] | None:
    """Rates of two systems on the recordings that both wrote, and their paired difference; None where none counts.

    measure: ``characters`` or ``words``.
    """
    ours, theirs, scale = _both(first, second, language, measure)
    if not sum(c.size for c in ours):
        return None
    pooled = [sum(counts, Counts()).rate for counts in (ours, theirs)]
    found = paired_bootstrap(*_columns(ours, theirs, scale))
    return {"first": pooled[0], "second": pooled[1], "difference": asdict(found), "recordings": len(ours)}


def paired_mean(
    first: Mapping[str, Tally], second: Mapping[str, Tally], *, measure: str = "characters"
) -> dict[str, Any] | None:
    """The same of the mean over languages; None where there are not at least two that count."""
    languages = sorted({tally.language for name, tally in first.items() if name in second})
    parts = [_both(first, second, code, measure) for code in languages]
    parts = [part for part in parts if sum(c.size for c in part[0])]
    if len(parts) < 2:
        return None
    rates = [
        [sum(counts, Counts()).rate for counts in side] for side in zip(*(part[:2] for part in parts), strict=True)
    ]
    found = paired_bootstrap_of_means([_columns(*part) for part in parts])
    means = [sum(side) / len(side) for side in rates]
    count = sum(len(part[0]) for part in parts)
    return {"first": means[0], "second": means[1], "difference": asdict(found), "recordings": count}


def _both(
    first: Mapping[str, Tally], second: Mapping[str, Tally], language: str, measure: str
) -> tuple[list[Counts], list[Counts], tuple[int, int]]:
    """Counts of the recordings that both systems wrote in all of their runs, and how many runs those are."""
    both = [(first[i], second[i]) for i in first if i in second and language in (ALL, first[i].language)]
    most = [max((pair[side].runs for pair in both), default=0) for side in (0, 1)]
    whole = [(a, b) for a, b in both if [a.runs, b.runs] == most]  # an interrupted run may lack a seed
    ours, theirs = ([getattr(pair[side], measure) for pair in whole] for side in (0, 1))
    return ours, theirs, (most[0], most[1])


def _columns(
    ours: Sequence[Counts], theirs: Sequence[Counts], runs: tuple[int, int]
) -> tuple[list[int], list[int], list[int]]:
    """Errors of both, each times the other's runs, and sizes."""
    return (
        [c.errors * runs[1] for c in ours],
        [c.errors * runs[0] for c in theirs],
        [c.size * runs[1] for c in ours],
    )
