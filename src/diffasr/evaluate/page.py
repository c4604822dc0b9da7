"""The figures of ``evaluate.report`` in, a Markdown page out. The normaliser's name stands beside every figure."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from diffasr.evaluate.quiet import KINDS, cells
from diffasr.text import LANGUAGES

Figures = Mapping[str, Any]


def render(report: Figures, plots: Sequence[str] = ()) -> str:
    """The whole page; ``plots`` are the names of pictures beside it."""
    parts = ["# Evaluation", _facts(report)]
    sentences = [f"- {c['sentence']}" for c in report["comparisons"] if c["is_headline"]]
    if sentences:
        parts += ["## Does diffusion beat CTC-greedy of the same checkpoint?", "\n".join(sentences)]
    for data in report["sets"]:
        for measure in ("cer", "wer"):
            parts.append(f"## {measure.upper()} in percent on {data} (normaliser: {report['normaliser']})")
            parts.append(rates_table(report, data, measure))
        parts += [f"## What went wrong on {data} (normaliser: {report['normaliser']})", _details(report, data)]
        parts += _breakdown(report, data)
    if report["training"]:
        parts += ["## The training run", _training(report["training"])]
    parts += ["## Speed", _speed(report)]
    if report["languages"]:
        parts += ["## Which language was found", *(_confusion(found) for found in report["languages"])]
    if report.get("quiet"):
        head = ["set", "decoder", "all sounds", *KINDS]
        parts += ["## Text where nobody speaks, in words a minute", table(head, cells(report["quiet"]))]
    parts += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


def rates_table(report: Figures, data: str, measure: str) -> str:
    """A row a system, a column a language, then the mean over languages; 95 % intervals by utterance."""
    scores = [s for s in report["scores"] if s["set"] == data]
    codes = [code for code in LANGUAGES if any(s["language"] == code and s[measure] for s in scores)]
    means = {m["system"]: m[measure] for m in report["means"] if m["set"] == data}
    rows = []
    for name, mean in means.items():
        mine = {s["language"]: s[measure] for s in scores if s["system"] == name}
        rows.append([name, *(_rate(mine.get(code)) for code in codes), _percent(mean)])
    return table(["decoder", *codes, "mean"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown of some cells."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _rate(measure: Figures | None) -> str:
    if measure is None:
        return "–"
    return f"{_percent(measure['value'])} [{_percent(measure['low'])}, {_percent(measure['high'])}]"


def _facts(report: Figures) -> str:
    """What was run where: without it no figure below means anything."""
    lines = [f"Normaliser: {report['normaliser']}. Intervals are 95 %, by bootstrap over utterances."]
    about = report["about"]
    if about:
        held, last = about["identity"], about["sessions"][-1]
        told = "was found by the system" if held["find_language"] else "was given"
        versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
        lines += [
            f"Model: {held['model']['name']}, SHA-256 {held['model']['fingerprint'][:16]}. The language {told}.",
            f"Machine: {last['cpu']}, {last['cores']} cores, {held['threads']} threads, device {held['device']}; "
            f"batch {held['batch']}; {versions}; commit {last['commit']}; {last['date']}.",
        ]
        if len(about["sessions"]) > 1:
            lines.append(f"The rows were made in {len(about['sessions'])} sessions: results.json has them all.")
    return "\n".join(lines)


def _details(report: Figures, data: str) -> str:
    """Substitutions, insertions and deletions in characters, sentences with an error, empty and runaway texts."""
    rows = []
    for score in report["scores"]:
        cer = score["cer"]
        if score["set"] == data and cer:
            spoken = "–"
            if "speakers" in cer:
                spoken = f"[{_percent(cer['low_by_speaker'])}, {_percent(cer['high_by_speaker'])}]"
            edits = [str(cer[k]) for k in ("substitutions", "insertions", "deletions", "size")]
            counts = [str(score["empty"]), str(score["runaway"]), str(score["runs"])]
            rows.append(
                [score["system"], score["language"], _rate(cer), spoken, *edits,
                 _percent(score["sentence_error_rate"]), *counts]
            )  # fmt: skip
    head = ["decoder", "language", "CER", "by speaker", "substitutions", "insertions", "deletions", "characters",
            "sentences wrong, %", "empty", "runaway", "texts"]  # fmt: skip
    return table(head, rows)


def _breakdown(report: Figures, data: str) -> list[str]:
    """Of the headline systems: error by length of recording, error of the drafts, and how far words can be trusted."""
    kept = [name for name, system in report["systems"].items() if system["is_headline"]]
    said, parts = f"on {data} (normaliser: {report['normaliser']})", []
    for kind, title, fill in (
        ("durations", "CER in percent by length of recording", _durations),
        ("drafts", "CER in percent of the text after each step, mean over languages,", _drafts),
        ("confidence", "How far words can be trusted", _confidence),
    ):
        found = [f for f in report[kind] if f["set"] == data and f["system"] in kept]
        if found:
            parts += [f"## {title} {said}", fill(found)]
    return parts


def _durations(found: Sequence[Figures]) -> str:
    bins = sorted({(d["from"], d["to"] or inf) for d in found})
    rows = []
    for name in dict.fromkeys(d["system"] for d in found):
        mine = {d["from"]: d["cer"] for d in found if d["system"] == name}
        rows.append([name, *(_rate(mine.get(start)) for start, _ in bins)])
    most = [max(d["recordings"] for d in found if d["from"] == start) for start, _ in bins]
    rows.append(["recordings", *map(str, most)])
    heads = [f"{start} to {end} s" if end < inf else f"from {start} s" for start, end in bins]
    return table(["decoder", *heads], rows)


def _drafts(found: Sequence[Figures]) -> str:
    last = max(len(d["cer"]) for d in found)
    steps = [step for step in range(1, last + 1) if step <= 8 or step % 8 == 0 or step == last]
    rows = []
    for d in found:
        rates = [_percent(d["cer"][s - 1]) if s <= len(d["cer"]) else "–" for s in steps]
        rows.append([d["system"], *rates, _percent(d["final"]), str(d["texts"])])
    return table(["decoder", *(f"step {s}" for s in steps), "written", "texts"], rows)


def _confidence(found: Sequence[Figures]) -> str:
    codes = [code for code in (*LANGUAGES, "all") if any(c["language"] == code for c in found)]
    rows = []
    for name in dict.fromkeys(c["system"] for c in found):
        mine = {c["language"]: c for c in found if c["system"] == name}
        rows.append([name, *(_calibration(mine.get(code)) for code in codes)])
    about = (
        "Expected calibration error in points; in brackets how sure the system was of its words and how many of them "
        "were right, both in percent."
    )
    return f"{about}\n\n{table(['decoder', *codes], rows)}"


def _calibration(found: Figures | None) -> str:
    if found is None:
        return "–"
    return f"{_percent(found['ece'])} ({_percent(found['confidence'])}, {_percent(found['accuracy'])})"


def _training(training: Figures) -> str:
    """How the curves of a run end: the mean loss of the last point drawn, the last rates on dev."""
    stages = ", ".join(f"{s['name']} {s['steps']}" for s in training["stages"])
    last = [f"{name} loss {curve[-1][1]:.2f}" for name, curve in training["losses"].items()]
    last += [f"dev {name.replace('_', ' ')} {_percent(curve[-1][1])} %" for name, curve in training["rates"].items()]
    return f"Steps: {stages}. At the end: {', '.join(last)}."


def _speed(report: Figures) -> str:
    """RTFx, and milliseconds of each stage for a second of audio."""
    stages = list(dict.fromkeys(stage for s in report["systems"].values() for stage in s["stages"]))
    rows = []
    for name, s in report["systems"].items():
        spent = [f"{1000 * s['stages'][k] / s['audio_seconds']:.2f}" if k in s["stages"] else "–" for k in stages]
        step = "–" if s["seconds_a_step"] is None else f"{1000 * s['seconds_a_step']:.1f} × {s['steps_run']:.1f}"
        rtfx = "–" if s["rtfx"] is None else f"{s['rtfx']:.1f}"
        rows.append([name, rtfx, str(s["batch"]), step, *spent])
    head = ["decoder", "RTFx", "batch", "ms a reading × readings", *(f"{stage}, ms/s" for stage in stages)]
    sessions = report["about"].get("sessions", ())
    peaks: dict[str, float] = {}
    for name, size in [found for session in sessions for found in session.get("peak_mib", {}).items()]:
        peaks[name] = max(size, peaks.get(name, 0.0))
    lines = [f"Largest process size in MiB while decoding: {', '.join(f'{n} {s}' for n, s in peaks.items())}."]
    return "\n\n".join([table(head, rows), *(lines if peaks else [])])


def _confusion(found: Figures) -> str:
    """Rows: the language spoken; columns: the language found."""
    said = [code for code in LANGUAGES if any(code in row for row in found["confusion"].values())]
    rows = [[code, *(str(row.get(c, 0)) for c in said)] for code, row in found["confusion"].items()]
    start = f"{found['system']} on {found['set']}: {found['right']} of {found['all']} rightly"
    return f"{start} ({_percent(found['accuracy'])} %).\n\n{table(['spoken', *said], rows)}"
