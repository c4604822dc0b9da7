"""Figures of an evaluation and of manifests in; the tables of the mini's model card out.

    python recipes/mini/card.py gather --rows runs/evaluation \\
        --manifest ../shared/speech/train.jsonl work/synth/*/sifted.jsonl
    python recipes/mini/card.py write [--check]

``gather`` scores the raw rows of `diffasr evaluate` once more, with case and punctuation, adds up the hours of the
manifests, and writes both to ``card.json`` beside the report (docs/results/mini), small enough to be committed.
``write`` puts two tables into MODEL_CARD.md, each where its two marks stand: hours by language with licences
(``<!-- hours -->`` to ``<!-- end of hours -->``), and CER with 95 % intervals (``<!-- scores -->`` to
``<!-- end of scores -->``), from results.json and, with case, from card.json. With ``--check`` it only compares.
Exit codes: 0 they agree (or were written), 1 they differ, 2 something is missing.
"""

import argparse
import json
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODES = ("en", "de", "fr", "es", "hi", "zh")
PLAIN, CASED = "basic", "cased"
NAMES: dict[str, str] = runpy.run_path(str(ROOT / "scripts" / "results"))["NAMES"]
Figures = dict[str, Any]


def hours(manifests: Sequence[Path]) -> list[Figures]:
    """Clips and hours of each language, source and licence."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for manifest in manifests:
        for line in manifest.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            row = json.loads(line)
            place = row["lang"], row.get("source", ""), row.get("license", "")
            found.setdefault(place, []).append(float(row["duration"]))
    keys = sorted(found, key=lambda k: (CODES.index(k[0]), k[1].startswith("synthetic_"), -sum(found[k]), k))
    return [
        {"language": k[0], "source": k[1].removeprefix("synthetic_"), "licence": k[2], "clips": len(found[k]),
         "is_synthetic": k[1].startswith("synthetic_"), "hours": round(sum(found[k]) / 3600, 3)}
        for k in keys
    ]  # fmt: skip


def gather(rows: Path, manifests: Sequence[Path], out: Path) -> None:
    """Write card.json into ``out``."""
    from diffasr.evaluate.folder import read_facts, read_rows
    from diffasr.evaluate.report import build_report

    report = build_report(read_rows(rows), CASED, read_facts(rows))
    kept = {name: report[name] for name in ("normaliser", "about", "sets", "systems", "scores", "means")}
    text = json.dumps({"hours": hours(manifests), "cased": kept}, ensure_ascii=False, indent=1)
    (out / "card.json").write_text(text + "\n", encoding="utf-8")


def hours_table(found: Sequence[Figures]) -> str:
    """A row a language: hours of people and of voices, and what they came from under which licence."""
    lines = ["| language | real, h | synthetic, h | sources and licences |", "|---|---|---|---|"]
    for code in CODES:
        mine = [f for f in found if f["language"] == code]
        sums = [sum(f["hours"] for f in mine if f["is_synthetic"] == kind) for kind in (False, True)]
        sources = "; ".join(f"{f['source']} {f['hours']:.2f} ({f['licence']})" for f in mine)
        lines.append(f"| {code} | {' | '.join(f'{s:.2f}' if s else '–' for s in sums)} | {sources} |")
    total = [sum(f["hours"] for f in found if f["is_synthetic"] == kind) for kind in (False, True)]
    return "\n".join([*lines, f"| all | {total[0]:.2f} | {total[1]:.2f} | |"])


def scores_table(report: Figures, data: str) -> str:
    """A row a headline system, a column a language: CER in percent with its interval, and the mean over languages."""
    scores = [s for s in report["scores"] if s["set"] == data and s["cer"]]
    codes = [code for code in CODES if any(s["language"] == code for s in scores)]
    means = {m["system"]: m["cer"] for m in report["means"] if m["set"] == data}
    lines = [f"| {data}, {report['normaliser']} | {' | '.join(codes)} | mean |", "|---" * (len(codes) + 2) + "|"]
    for name, facts in report["systems"].items():
        mine = {s["language"]: s["cer"] for s in scores if s["system"] == name}
        if facts["is_headline"] and mine:
            steps = f", {facts['steps']} steps" if facts["steps"] is not None else ""
            title = f"{NAMES[facts['decoder']]}{steps}" if facts["decoder"] in NAMES else name
            mean = "–" if means[name] is None else f"{100 * means[name]:.1f}"
            lines.append(f"| {title} | {' | '.join(rate(mine.get(code)) for code in codes)} | {mean} |")
    return "\n".join(lines)


def rate(found: Figures | None) -> str:
    """A rate in percent, and its interval."""
    if found is None:
        return "–"
    value, low, high = (f"{100 * found[part]:.1f}" for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def scores_text(report: Figures, cased: Figures | None) -> str:
    """All tables of scores, what they were run on, and which normaliser they have."""
    identity = report["about"]["identity"]
    model = f"{identity['model']['name']}, SHA-256 {identity['model']['fingerprint'][:16]}"
    told = "found by the system" if identity["find_language"] else "given"
    parts = [
        f"Model {model}; the language is {told}. Character error rate (CER) in percent, with 95 % intervals by "
        "bootstrap over recordings.",
        "Without case and punctuation (normaliser basic):",
        *(scores_table(report, data) for data in report["sets"]),
    ]
    if cased is not None:
        parts += ["With case and punctuation (normaliser cased):", *(scores_table(cased, d) for d in cased["sets"])]
    for found in report["languages"]:
        share = f"{found['right']} of {found['all']} ({100 * found['accuracy']:.1f} %)"
        parts.append(f"Language named rightly by {found['system']} on {found['set']}: {share}.")
    return "\n\n".join(parts)


def blocks(folder: Path) -> dict[str, str]:
    """What belongs between the marks, by their name; raises ValueError that says what is missing or does not fit."""
    results, card = folder / "results.json", folder / "card.json"
    if not results.is_file():
        raise ValueError(f"no {results}: run `diffasr evaluate … --out {folder}` first")
    report = json.loads(results.read_text(encoding="utf-8"))
    more = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    cased = more.get("cased")
    if report["normaliser"] != PLAIN or (cased and cased["normaliser"] != CASED):
        raise ValueError(f"{results} has the normaliser {report['normaliser']}, the card needs {PLAIN}")
    if cased and cased["about"]["identity"] != report["about"]["identity"]:
        raise ValueError(f"{card} is of another run than {results}: gather again from the same rows")
    out = {"scores": scores_text(report, cased)}
    return out | ({"hours": hours_table(more["hours"])} if more else {})


def write(card: Path, folder: Path, *, check: bool) -> int:
    """Fill the card's marks, or only compare; returns the exit code."""
    text = card.read_text(encoding="utf-8")
    try:
        made = blocks(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    fresh, filled = text, 0
    for name in re.findall(r"<!-- (hours|scores) -->", text):
        if name not in made:
            print(f"no {folder / 'card.json'}: run card.py gather first", file=sys.stderr)
            return 2
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        fresh, count = block.subn(lambda found, name=name: f"{found[1]}\n{made[name]}\n\n{found[2]}", fresh)
        filled += count
    if not filled:
        print(f"{card} has no <!-- scores --> … <!-- end of scores -->", file=sys.stderr)
        return 2
    if check and fresh != text:
        print(f"{card} differs from {folder}: run recipes/mini/card.py write", file=sys.stderr)
        return 1
    if not check:
        card.write_text(fresh, encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Read the call; gather or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first, second = commands.add_parser("gather"), commands.add_parser("write")
    first.add_argument("--rows", type=Path, required=True, help="the folder of an evaluation, with its raw rows")
    first.add_argument("--manifest", type=Path, nargs="+", required=True)
    second.add_argument("--check", action="store_true", help="change nothing; exit 1 when the card is out of date")
    second.add_argument("--card", type=Path, default=ROOT / "src" / "diffasr" / "assets" / "mini" / "MODEL_CARD.md")
    for command in (first, second):
        command.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "mini")
    args = parser.parse_args(argv)
    if args.command == "gather":
        gather(args.rows, args.manifest, args.results)
        return 0
    return write(args.card, args.results, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
