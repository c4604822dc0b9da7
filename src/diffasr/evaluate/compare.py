"""Raw rows and two systems in, what sets them apart out: paired differences, and the recordings that differ most."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffasr.errors import OptionError
from diffasr.evaluate.alignment import align, units
from diffasr.evaluate.folder import Row
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.page import table
from diffasr.evaluate.score import character_counts
from diffasr.evaluate.tally import ALL, paired, paired_mean, tally
from diffasr.text import LANGUAGES

GAP = "∅"


def compare(rows: Sequence[Row], first: str, second: str, normaliser: str, *, most: int = 20) -> str:
    """Markdown: the paired bootstrap of two systems, a language at a time, and ``most`` recordings, aligned.

    Of a system with several seeds the first is shown. Raises OptionError for a system that is not there.
    """
    known = list(dict.fromkeys(row["system"] for row in rows))
    for name in (first, second):
        if name not in known:
            raise OptionError(f"no system {name!r} in these rows; there are {', '.join(known)}")
    chosen = [row for row in rows if row["system"] in (first, second)]
    parts = [f"# {first} against {second} (normaliser: {normaliser})"]
    tallies = tally(chosen, normaliser)
    for data in dict.fromkeys(row["set"] for row in chosen):
        lines = []
        for code in (*LANGUAGES, ALL):
            for measure, label in (("characters", "CER"), ("words", "WER")):
                found = paired(
                    tallies.get((data, first), {}), tallies.get((data, second), {}), language=code, measure=measure
                )
                if found:
                    lines.append([code, label, *_cells(found)])
        found = paired_mean(tallies.get((data, first), {}), tallies.get((data, second), {}))
        if found:
            lines.append(["mean", "CER", *_cells(found)])
        head = ["language", "measure", first, second, "difference", "95 %", "p", "recordings"]
        parts += [f"## {data}, in percent", table(head, lines)]
    parts += ["## Recordings that differ most", *_examples(chosen, first, second, normaliser, most)]
    return "\n\n".join(parts)


def _cells(found: Mapping[str, Any]) -> list[str]:
    difference = found["difference"]
    span = f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    rates = [f"{100 * found[side]:.1f}" for side in ("first", "second")]
    return [*rates, f"{100 * difference['value']:+.1f}", span, f"{difference['p']:.3f}", str(found["recordings"])]


def _examples(rows: Sequence[Row], first: str, second: str, normaliser: str, most: int) -> list[str]:
    """The recordings with the largest gap in character errors, both texts aligned to the reference."""
    texts: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        texts.setdefault((row["set"], row["id"]), {}).setdefault(row["system"], row)
    gaps = []
    for (data, name), pair in texts.items():
        if len(pair) == 2 or first == second:
            reference, *said = (
                normalise(text, pair[first]["language"], normaliser)
                for text in (pair[first]["reference"], pair[first]["hypothesis"], pair[second]["hypothesis"])
            )
            errors = [character_counts(reference, text).errors for text in said]
            gaps.append((-abs(errors[0] - errors[1]), data, name, errors, reference, said, pair[first]["language"]))
    out = []
    for gap, data, name, errors, reference, said, code in sorted(gaps, key=lambda g: g[:3])[:most]:
        if gap:
            lines = [f"{data} {name} [{code}]: {errors[0]} against {errors[1]} characters wrong"]
            for system, text in zip((first, second), said, strict=True):
                lines += [f"    {system}", *(f"    {line}" for line in aligned(reference, text, code))]
            out.append("\n".join(["```", *lines, "```"]))
    return out or ["None."]


def aligned(reference: str, hypothesis: str, language: str) -> tuple[str, str]:
    """Two lines in which what belongs together stands one above the other: words, or letters where there are none."""
    pairs = [(a or GAP, b or GAP) for a, b in align(units(reference, language), units(hypothesis, language))]
    widths = [max(len(a), len(b)) for a, b in pairs]
    upper, lower = (
        " ".join(pair[side].ljust(width) for pair, width in zip(pairs, widths, strict=True)).rstrip() for side in (0, 1)
    )
    return upper, lower
