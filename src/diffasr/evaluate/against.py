"""An earlier report and a new one in; what got better or worse, and whether that is too much, out: a gate for CI.

Where the rows of the earlier evaluation lie beside its report, the two are compared in pairs, on the recordings that
both have with the same reference; where they do not, the intervals of the two reports are.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffasr.errors import OptionError
from diffasr.evaluate.folder import ROWS, Row, read_rows
from diffasr.evaluate.page import table
from diffasr.evaluate.tally import Tallies, paired, tally
from diffasr.text import LANGUAGES

_HEAD = ("system", "language", "before", "now", "change", "95 %", "")


@dataclass(frozen=True, kw_only=True)
class Standard:
    """What a new evaluation is held against."""

    path: Path
    report: Mapping[str, Any]
    rows: Sequence[Row]
    """Empty where they do not lie beside the report."""
    margin: float
    """Points that the mean CER of a headline system may rise by."""


def load_standard(path: Path, margin: float, *, normaliser: str, rows: Path) -> Standard:
    """Read the report at ``path``, before the new one at ``rows`` (a folder or a file) is made.

    Raises OptionError where it cannot be compared.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise OptionError(f"margin must be a number of points from 0 up, got {margin}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        old = report["normaliser"]
        _ = [(s["set"], s["system"], s["language"], s["cer"]) for s in report["scores"]]
    except OSError as error:
        raise OptionError(
            f"no report at {path}: {error.strerror}; name a results.json of `diffasr evaluate`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is not a results.json of `diffasr evaluate`: {error!r}") from error
    beside = path.parent / ROWS
    if beside.resolve() == (rows / ROWS if not rows.is_file() else rows).resolve():
        raise OptionError(f"{path} is the report of {beside} itself: keep an older folder, or choose another --out")
    if not beside.is_file() and old != normaliser:
        raise OptionError(
            f"{path} was made with the normaliser {old!r}, and no {ROWS} beside it lets it be scored with "
            f"{normaliser!r}: use --normaliser {old}"
        )
    return Standard(path=path, report=report, rows=read_rows(beside) if beside.is_file() else (), margin=margin)


def judge(standard: Standard, report: Mapping[str, Any], rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Markdown of what changed, and a sentence for each headline system whose mean CER rose by more than the margin.

    report, rows: of the new evaluation. The mean is over the languages of both, each of equal weight. Raises
    OptionError where not one headline system is in both.
    """
    changes = _paired_changes(standard.rows, rows, report["normaliser"]) if standard.rows else None
    if changes is None:
        changes = _changes(standard.report, report)
    means = {place: sum(c["value"] for c in mine.values()) / len(mine) for place, mine in changes.items()}
    headlines = [place for place in changes if report["systems"][place[1]]["is_headline"]]
    if not headlines:
        names = ", ".join(dict.fromkeys(f"{s['system']} on {s['set']}" for s in standard.report["scores"]))
        raise OptionError(
            f"no headline system is in both evaluations, on recordings of both: {standard.path} has {names}"
        )
    how = "paired bootstrap on the recordings of both" if standard.rows else "the intervals of both reports"
    parts = [f"# Against {standard.path} (normaliser: {report['normaliser']})", f"How sure it is: by {how}."]
    for data in dict.fromkeys(place[0] for place in changes):
        lines = []
        for place, mine in changes.items():
            if place[0] == data:
                lines += [[place[1], code, *_cells(change)] for code, change in mine.items()]
                lines.append([place[1], "mean", "", "", f"{100 * means[place]:+.1f}", "", ""])
        parts += [f"## {data}, CER in percent", table(_HEAD, lines)]
    parts += [f"{side}: {', '.join(names)}." for side, names in _only(standard, report).items() if names]
    failed = [
        f"{name} on {data}: the mean CER rose by {100 * means[data, name]:.1f} points, more than {standard.margin:g}"
        for data, name in headlines
        if 100 * means[data, name] > standard.margin
    ]
    return "\n\n".join(parts), failed


_Changes = dict[tuple[str, str], dict[str, dict[str, Any]]]
"""Of each set and system, by language: before, now, value, low, high, verdict."""


def _paired_changes(before: Sequence[Row], now: Sequence[Row], normaliser: str) -> _Changes:
    systems = {row["system"] for row in before} & {row["system"] for row in now}
    said = {(row["set"], row["id"]): row["reference"] for row in before}
    same = [row for row in now if said.get((row["set"], row["id"])) == row["reference"] and row["system"] in systems]
    ours = tally(same, normaliser)
    theirs: Tallies = tally((row for row in before if row["system"] in systems), normaliser)
    out: _Changes = {}
    for place in [place for place in ours if place in theirs]:
        for code in LANGUAGES:
            found = paired(ours[place], theirs[place], language=code)
            if found:
                change = found["difference"] | {"before": found["second"], "now": found["first"]}
                change["span"] = f"[{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"
                sure = found["recordings"] > 1
                change["verdict"] = _verdict(change["low"], change["high"]) if sure else "one recording is too few"
                out.setdefault(place, {})[code] = change
    return out


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> _Changes:
    old, new = (
        {(s["set"], s["system"], s["language"]): s["cer"] for s in report["scores"] if s["cer"]}
        for report in (before, now)
    )
    out: _Changes = {}
    for data, name, code in [key for key in new if key in old and key[2] in LANGUAGES]:
        a, b = old[data, name, code], new[data, name, code]
        out.setdefault((data, name), {})[code] = {
            "before": a["value"],
            "now": b["value"],
            "value": b["value"] - a["value"],
            "span": "–",
            "verdict": _verdict(b["low"] - a["high"], b["high"] - a["low"]),
        }
    return out


def _verdict(low: float, high: float) -> str:
    """What a change whose 95 % interval is this, or which lies between these, may be called."""
    if low == high == 0:
        return "the same"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "not clear"


def _cells(change: Mapping[str, Any]) -> list[str]:
    rates = [f"{100 * change[side]:.1f}" for side in ("before", "now")]
    return [*rates, f"{100 * change['value']:+.1f}", change["span"], change["verdict"]]


def _only(standard: Standard, report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Systems of one of the two alone."""
    old, new = (list(dict.fromkeys(s["system"] for s in r["scores"])) for r in (standard.report, report))
    return {"Only before": [n for n in old if n not in new], "Only now": [n for n in new if n not in old]}
