"""Raw rows in, one dictionary of figures out: what results.json holds and every table and plot is made from.

Rates are corpus rates, as fractions. A decoder that ran with several seeds has their errors pooled; intervals draw
utterances with all their seeds. RTFx is seconds of audio over seconds of processing, without reading files and without
the first call (huggingface/open_asr_leaderboard).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.breakdown import by_duration, confidence, draft_errors
from diffasr.evaluate.folder import Row, read_facts, read_rows
from diffasr.evaluate.page import render
from diffasr.evaluate.plot import draw
from diffasr.evaluate.quiet import false_text, is_quiet
from diffasr.evaluate.tally import ALL, Tallies, Tally, measure, paired, tally
from diffasr.evaluate.worst import WORST, worst_page
from diffasr.formats import write_text_atomically
from diffasr.text import LANGUAGES

_ORDER = ("ctc", "ctc_beam", "ar", "ar_ctc", "diffusion", "seeded", "vote", "whisper")
_REVISED = ("diffusion", "seeded", "vote")


def build_report(
    rows: Sequence[Row], normaliser: str, facts: Mapping[str, Any], *, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All figures of some raw rows; ``facts`` are those of run.json, or nothing; ``training``: see ``training_log``."""
    quiet, rows = false_text(rows), [row for row in rows if not is_quiet(row)]
    about: dict[str, Row] = {}
    for row in rows:
        about.setdefault(row["system"], row)
    names = sorted(about, key=lambda n: (_ORDER.index(about[n]["decoder"]), about[n]["steps"] or 0, n))
    about = {name: about[name] for name in names}
    tallies, sets = tally(rows, normaliser), list(dict.fromkeys(row["set"] for row in rows))
    scores = [
        {"set": data, "system": name, "decoder": about[name]["decoder"], "steps": about[name]["steps"], **score}
        for data in sets
        for name in names
        for score in _scores(tallies.get((data, name), {}))
    ]
    headlines = headline_systems(about, names)
    return {
        "normaliser": normaliser,
        "about": dict(facts),
        "sets": sets,
        "systems": {name: _system(name, about[name], rows, headlines) for name in names},
        "scores": scores,
        "means": _means(scores),
        "languages": [found for data in sets for found in _languages_found(rows, data, names)],
        "comparisons": _comparisons(tallies, sets, about, headlines, normaliser),
        "durations": by_duration(tallies),
        "drafts": draft_errors(rows, normaliser),
        "confidence": confidence(rows, normaliser),
        "quiet": quiet,
        "training": dict(training) if training else None,
    }


def headline_systems(about: Mapping[str, Row], names: Sequence[str]) -> list[str]:
    """What a short table shows: of each diffusion decoder the default number of steps, or the largest that was run.

    Chosen by number, never by result.
    """
    chosen = []
    for name in names:
        counts = [about[n]["steps"] for n in names if about[n]["decoder"] == about[name]["decoder"]]
        usual = SamplingOptions().steps
        if about[name]["steps"] in (None, usual if usual in counts else counts[-1]):
            chosen.append(name)
    return chosen


def _scores(clips: Mapping[str, Tally]) -> list[dict[str, Any]]:
    """Figures of one system on one set, a language at a time and pooled."""
    codes = [code for code in LANGUAGES if any(t.language == code for t in clips.values())]
    out = []
    for code in [*codes, *([ALL] if len(codes) > 1 else [])]:
        mine = [t for t in clips.values() if code in (ALL, t.language)]
        out.append(
            {
                "language": code,
                "recordings": len(mine),
                "runs": sum(t.runs for t in mine),
                "wer": measure([t.words for t in mine], mine),
                "cer": measure([t.characters for t in mine], mine),
                "sentence_error_rate": sum(t.wrong for t in mine) / sum(t.runs for t in mine),
                "empty": sum(t.empty for t in mine),
                "runaway": sum(t.runaway for t in mine),
            }
        )
    return out


def _means(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over languages, each of equal weight, for each set and system."""
    out = []
    for place in dict.fromkeys((s["set"], s["system"]) for s in scores):
        mine = [s for s in scores if (s["set"], s["system"]) == place and s["language"] != ALL]
        row: dict[str, Any] = {"set": place[0], "system": place[1]}
        for kind in ("wer", "cer"):
            rates = [s[kind]["value"] for s in mine if s[kind]]
            row[kind] = sum(rates) / len(rates) if rates else None
        out.append(row)
    return out


def _system(name: str, example: Row, rows: Sequence[Row], headlines: Sequence[str]) -> dict[str, Any]:
    """How one system decodes, and how fast."""
    mine = [row for row in rows if row["system"] == name]
    audio, stages, calls = sum(row["duration"] for row in mine), Counter[str](), Counter[str]()
    for row in mine:
        stages.update(row["seconds"])
        calls.update(row.get("calls", {}))
    seconds = sum(stages.values())
    return {
        "decoder": example["decoder"],
        "steps": example["steps"],
        "start": example.get("start"),
        "seeds": len({row["seed"] for row in mine}),
        "is_headline": name in headlines,
        "batch": max(row.get("batch", 1) for row in mine),
        "audio_seconds": audio,
        "seconds": seconds,
        "rtfx": audio / seconds if seconds else None,
        "stages": dict(stages),
        "steps_run": calls["denoise"] / len(mine) if calls["denoise"] else None,
        "seconds_a_step": stages["denoise"] / calls["denoise"] if calls["denoise"] else None,
    }


def _languages_found(rows: Sequence[Row], data: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """How often each system that was not told the language named it rightly, and what it took for what."""
    out = []
    for name in names:
        mine = [row for row in rows if (row["set"], row["system"]) == (data, name) and row.get("found")]
        if mine:
            table: dict[str, Counter[str]] = {}
            for row in mine:
                table.setdefault(row["language"], Counter())[row["found"]] += 1
            right = sum(row["found"] == row["language"] for row in mine)
            confusion = {code: dict(table[code]) for code in LANGUAGES if code in table}
            out.append(
                {"set": data, "system": name, "right": right, "all": len(mine), "accuracy": right / len(mine),
                 "confusion": confusion}
            )  # fmt: skip
    return out


def _comparisons(
    tallies: Tallies, sets: Sequence[str], about: Mapping[str, Row], headlines: Sequence[str], normaliser: str
) -> list[dict[str, Any]]:
    """Every diffusion system against CTC-greedy of the same checkpoint, paired, in characters."""
    out = []
    for data in sets:
        for name in [n for n in about if about[n]["decoder"] in _REVISED and (data, "ctc") in tallies]:
            ours, theirs = tallies.get((data, name), {}), tallies[data, "ctc"]
            codes = [c for c in LANGUAGES if any(t.language == c for t in ours.values())]
            for code in [*codes, *([ALL] if len(codes) > 1 else [])]:
                found = paired(ours, theirs, language=code, measure="characters")
                if found:
                    found = {"set": data, "language": code, "system": name, "against": "ctc"} | found
                    found["is_headline"] = name in headlines
                    found["sentence"] = _sentence(found, normaliser)
                    out.append(found)
    return out


def _sentence(found: Mapping[str, Any], normaliser: str) -> str:
    """Whether diffusion beats CTC-greedy, by how much, and how sure that is."""
    difference = found["difference"]
    low, high = sorted(abs(100 * difference[side]) for side in ("low", "high"))
    rates = f"CER {100 * found['first']:.1f} against {100 * found['second']:.1f} %, {found['recordings']} recordings"
    where = "All languages together" if found["language"] == ALL else LANGUAGES[found["language"]]
    start, end = f"{where}, {found['set']}: {found['system']}", f"({rates}; normaliser {normaliser})."
    if found["recordings"] < 2:
        return f"{start} cannot be compared with CTC-greedy: one recording is too few {end}"
    if difference["low"] <= 0 <= difference["high"]:
        value, least, most = (f"{100 * difference[part]:+.1f}" for part in ("value", "low", "high"))
        return f"{start} does not clearly differ from CTC-greedy: {value} points, 95 % {least} to {most} {end}"
    verb = "beats" if difference["value"] < 0 else "is worse than"
    by = f"{abs(100 * difference['value']):.1f} points, 95 % {low:.1f} to {high:.1f}"
    return f"{start} {verb} CTC-greedy by {by} {end}"


def write_report(
    source: Path, normaliser: str, out: Path, *, training: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Score the raw rows at ``source`` and put results.json, report.md, its plots and worst.html into ``out``."""
    rows = read_rows(source)
    report = build_report(rows, normaliser, read_facts(source), training=training)
    out.mkdir(parents=True, exist_ok=True)
    plots = draw(report, out) if report["sets"] else []
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    write_text_atomically(out / "results.json", text + "\n")
    page = render(report, [plot.name for plot in plots])
    headlines = [name for name, system in report["systems"].items() if system["is_headline"]]
    worst = worst_page(rows, headlines, normaliser, out)
    if worst is not None:
        write_text_atomically(out / WORST, worst)
        page += f"\n[The recordings with most errors, to listen to]({WORST})\n"
    write_text_atomically(out / "report.md", page)
    return report
