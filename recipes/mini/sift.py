"""A manifest of synthetic speech in; the same without the clips that Whisper-base can't read out.

    python recipes/mini/sift.py work/synth/pico_fr/manifest.jsonl --whisper work/whisper/ct2 [--bound 0.4]
    python recipes/mini/sift.py work/synth/pico_fr/manifest.jsonl --whisper work/whisper/ct2 --sample 60

Beside the manifest come ``heard.jsonl``, what Whisper wrote of each clip (int8, beam 1, language given), one line as
soon as it is heard, and ``sifted.jsonl``, the lines of the manifest whose character error rate is at most the bound
(normaliser basic). An interrupted run goes on; another bound needs no new hearing. Whisper-base writes Hindi in Urdu
letters, so it can't judge it: Hindi clips all stay, unheard. ``--sample`` hears some clips all over the manifest, says
what would go, and writes no ``sifted.jsonl``. Needs `pip install 'diffasr[evaluate]'`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffasr.audio import load_audio
from diffasr.evaluate.baseline import Baseline, load_baseline
from diffasr.evaluate.score import character_errors

UNREAD = ("hi",)
"""Languages that Whisper-base can't judge."""
SHOWN = 10
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A line of the manifest and how far what was heard is from its text."""

    row: Row
    heard: str
    rate: float
    """Edits over characters of the text; 0 for what was not judged."""


def read_rows(path: Path) -> list[Row]:
    """The whole lines of a file; a last one that was cut short, or a file that is not there, does not count."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []


def hear(rows: Sequence[Row], folder: Path, recogniser: Baseline) -> dict[str, str]:
    """What the recogniser writes of each clip, by file name; ``heard.jsonl`` in ``folder`` keeps it at once."""
    place = folder / "heard.jsonl"
    known = {row["audio_filepath"]: row["heard"] for row in read_rows(place)}
    with place.open("ab") as lines:
        lines.truncate(place.read_bytes().rfind(b"\n") + 1)
        for row in rows:
            name = row["audio_filepath"]
            if name not in known and row["lang"] not in UNREAD:
                known[name] = recogniser.transcribe(load_audio(folder / name), row["lang"])[0]
                lines.write(
                    (json.dumps({"audio_filepath": name, "heard": known[name]}, ensure_ascii=False) + "\n").encode()
                )
                lines.flush()
    return known


def judge(rows: Sequence[Row], heard: dict[str, str]) -> list[Judged]:
    """Each line of the manifest with its rate. A text of which the normaliser leaves nothing is as wrong as can be."""
    out = []
    for row in rows:
        text = heard.get(row["audio_filepath"], "")
        if row["lang"] in UNREAD:
            out.append(Judged(row=row, heard="", rate=0.0))
        else:
            errors, size = character_errors(row["text"], text, row["lang"])
            out.append(Judged(row=row, heard=text, rate=errors / size if size else float("inf")))
    return out


def report(judged: Sequence[Judged], bound: float) -> str:
    """What stays, what goes and why, the worst first."""
    gone = sorted((j for j in judged if j.rate > bound), key=lambda j: -j.rate)
    hours, lost = (sum(j.row["duration"] for j in part) / 3600 for part in (judged, gone))
    share = 100 * len(gone) / max(1, len(judged))
    dropped = f"dropped {len(gone)} ({share:.1f} %), {lost:.2f} h: CER by Whisper above {100 * bound:.0f} %"
    lines = [f"{len(judged)} clips, {hours:.2f} h; {dropped}"]
    silent = sum(not j.heard.strip() for j in gone)
    runaway = sum(len(j.heard) > 2 * len(j.row["text"]) + 20 for j in gone)
    if gone:
        lines.append(
            f"why: nothing heard {silent}, text that runs on {runaway}, other words {len(gone) - silent - runaway}"
        )
    for j in gone[:SHOWN]:
        lines.append(
            f"  {j.row['audio_filepath']} CER {100 * j.rate:.0f} %: {j.row['text']!r} heard as {j.heard[:120]!r}"
        )
    if len(gone) > SHOWN:
        lines.append(f"  … and {len(gone) - SHOWN} more: heard.jsonl has what was heard")
    unread = sum(j.row["lang"] in UNREAD for j in judged)
    if unread:
        lines.append(f"unheard, in {', '.join(UNREAD)}, all kept: {unread}")
    return "\n".join(lines)


def sift(manifest: Path, recogniser: Baseline, *, bound: float, sample: int = 0) -> str:
    """Hear, judge, and write ``sifted.jsonl`` beside the manifest, unless only a sample was asked for; the report."""
    rows = read_rows(manifest)
    if not rows:
        raise SystemExit(f"{manifest} has no line: name the manifest of a folder that synthesize.py filled")
    chosen = rows[:: max(1, len(rows) // sample)][:sample] if sample else rows
    judged = judge(chosen, hear(chosen, manifest.parent, recogniser))
    if not sample:
        kept = "".join(json.dumps(j.row, ensure_ascii=False) + "\n" for j in judged if j.rate <= bound)
        part = manifest.parent / "sifted.part"
        part.write_text(kept, encoding="utf-8")
        part.replace(manifest.parent / "sifted.jsonl")
    return report(judged, bound)


def main() -> None:
    """Read the call and sift."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="+")
    parser.add_argument("--whisper", required=True, help="folder or hub id of a CTranslate2 Whisper")
    parser.add_argument("--bound", type=float, default=0.4, help="largest CER that stays (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="hear only so many, and write no manifest")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.bound < 0 or args.sample < 0:
        parser.error(f"--bound and --sample are 0 or more, got {args.bound} and {args.sample}")
    recogniser = load_baseline(f"whisper:{args.whisper}", threads=args.threads)
    for manifest in args.manifest:
        print(f"{manifest}: {sift(manifest, recogniser, bound=args.bound, sample=args.sample)}", flush=True)


if __name__ == "__main__":
    main()
