"""What cutting costs: recordings joined into one against the same ones alone, and seams in speech without a pause.

    python benchmarks/seams.py [MANIFEST.jsonl] [--clips 4] [--model mini] [--steps 8] [--threads 2]

Of each language the first clips are written down (a) alone; (b) joined, a second of silence between them, so that cuts
lie in pauses; (c) joined without the silence around them, so that windows of 30, 20 or 12 s overlap and are sewn
together; (d) as (c), cut hard at as many seconds, which shows what the sewing is worth. Edits are counted in
characters against the references (with a manifest) or against (a) (with samples/).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts
from diffasr.transcribe import Transcriber, load
from diffasr.windows import ListenOptions, Windows

SAMPLES = Path(__file__).parent.parent / "samples"
LENGTHS = (30, 20, 12)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    asr, options = load(args.model, threads=args.threads), SamplingOptions(steps=args.steps)
    rows: dict[str, Counts] = {}
    for code, clips in read_clips(args.manifest, args.clips).items():
        texts = write_all(asr, code, [sound for sound, _ in clips], options)
        said = [text for _, text in clips]
        reference = " ".join(said) if all(said) else texts["alone"]
        for name, text in texts.items():
            found = character_counts(*(normalise(t, code, "basic") for t in (reference, text)))
            rows[name] = rows.get(name, Counts()) + found
    print("| recording | characters | lost | invented | exchanged | rate in percent |\n|---|---|---|---|---|---|")
    for name, c in rows.items():
        print(f"| {name} | {c.size} | {c.deletions} | {c.insertions} | {c.substitutions} | {100 * c.rate:.1f} |")


def read_clips(manifest: Path | None, count: int) -> dict[str, list[tuple[Samples, str]]]:
    """Sounds and texts by language; of samples/ each recording stands ``count`` times, and no text is known."""
    if manifest is None:
        return {path.stem: [(load_audio(path), "")] * count for path in sorted(SAMPLES.glob("*.opus"))}
    found: dict[str, list[tuple[Samples, str]]] = {}
    for line in manifest.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        mine = found.setdefault(item["lang"], [])
        if len(mine) < count:
            mine.append((load_audio(manifest.parent / item["audio_filepath"]), item["text"]))
    return found


def write_all(asr: Transcriber, code: str, sounds: Sequence[Samples], options: SamplingOptions) -> dict[str, str]:
    """The text of each way to listen."""
    silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
    spaced = np.concatenate([part for sound in sounds for part in (sound, silence)])
    dense = np.concatenate([trimmed(sound) for sound in sounds])
    alone = asr.transcribe(list(sounds), language=code, options=options)
    space = "" if code == "zh" else " "
    texts = {
        "alone": space.join(r.text for r in alone),
        "joined, with pauses": asr.transcribe(spaced, language=code, options=options).text,
    }
    for seconds in LENGTHS:
        size = seconds * SAMPLE_RATE_HZ
        hard = [dense[n : n + size] for n in range(0, len(dense), size)]
        blunt = ListenOptions(vad=False, window_seconds=seconds)
        sewn = ListenOptions(threshold=0.01, window_seconds=seconds, longest_seconds=seconds)  # nothing is a pause
        parts = asr.transcribe(list(hard), language=code, options=options, listen=blunt)
        whole = asr.transcribe(dense, language=code, options=options, listen=sewn)
        texts[f"no pauses, windows of {seconds} s, sewn"] = whole.text
        texts[f"no pauses, windows of {seconds} s, cut hard"] = space.join(r.text for r in parts)
    return texts


def trimmed(sound: Samples) -> Samples:
    """From the first speech to the last; all of it where none is heard."""
    windows = list(Windows(sound, ListenOptions(margin_seconds=0.0)))
    return sound[windows[0].start : windows[-1].end] if windows else sound


if __name__ == "__main__":
    main()
