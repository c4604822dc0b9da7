"""Raw rows in; the edits of each recording by each system, and rates of some of them, alone or paired, out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffasr.evaluate.folder import Row
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, bootstrap, character_counts, paired_bootstrap, word_counts

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
    both = [(first[i], second[i]) for i in first if i in second and language in (ALL, first[i].language)]
    most = [max((pair[side].runs for pair in both), default=0) for side in (0, 1)]
    whole = [(a, b) for a, b in both if [a.runs, b.runs] == most]  # an interrupted run may lack a seed
    ours, theirs = ([getattr(pair[side], measure) for pair in whole] for side in (0, 1))
    if not sum(c.size for c in ours):
        return None
    pooled = [sum(counts, Counts()).rate for counts in (ours, theirs)]
    found = paired_bootstrap(
        [c.errors * most[1] for c in ours], [c.errors * most[0] for c in theirs], [c.size * most[1] for c in ours]
    )
    return {"first": pooled[0], "second": pooled[1], "difference": asdict(found), "recordings": len(whole)}
