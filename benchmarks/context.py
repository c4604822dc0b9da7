"""What the text of the window before is worth: recordings cut into windows, decoded without it and with it.

    python benchmarks/context.py ../shared/speech/dev.jsonl [--seconds 4] [--every 3] [--steps 8] [--threads 1]

``one sentence``: clips longer than a window, so that it goes on in the next one. ``two speakers``: clips of a language
in pairs, half a second of silence between them, so that what was said before has nothing to do with what follows.
Counted are the characters of the whole text.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts
from diffasr.text import LANGUAGES
from diffasr.windows import ListenOptions

Case = tuple[str, str, Samples, str]
"""Kind, language, sound and text."""


def cases(manifest: Path, every: int, seconds: float) -> list[Case]:
    """What is decoded."""
    items = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()][::every]
    clips = [(i["lang"], load_audio(manifest.parent / i["audio_filepath"]), i["text"]) for i in items]
    found = [("one sentence", *clip) for clip in clips if len(clip[1]) > 1.3 * seconds * SAMPLE_RATE_HZ]
    pause = np.zeros(SAMPLE_RATE_HZ // 2, np.float32)
    for code in LANGUAGES:
        mine = [clip for clip in clips if clip[0] == code]
        for (_, first, said), (_, then, more) in zip(mine[::2], mine[1::2], strict=False):
            found.append(("two speakers", code, np.concatenate((first, pause, then)), f"{said} {more}"))
    return found


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=4.0, help="the longest window")
    parser.add_argument("--every", type=int, default=1, help="of so many clips take one")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    asr, options = diffasr.load(args.model, threads=args.threads), SamplingOptions(steps=args.steps)
    counts: dict[tuple[str, bool], tuple[int, Counts]] = {}
    for kind, code, samples, text in cases(args.manifest, args.every, args.seconds):
        for context in (False, True):
            listen = ListenOptions(vad=False, window_seconds=args.seconds, context=context)
            heard = asr.transcribe(samples, language=code, options=options, listen=listen).text
            errors = character_counts(*(normalise(t, code, "basic") for t in (text, heard)))
            number, known = counts.get((kind, context), (0, Counts()))
            counts[kind, context] = number + 1, known + errors
    print("| recordings | number | context | lost | invented | exchanged | CER in percent |")
    print("|---|---|---|---|---|---|---|")
    for (kind, context), (number, c) in counts.items():
        edits = f"{c.deletions} | {c.insertions} | {c.substitutions} | {100 * c.rate:.1f}"
        print(f"| {kind} | {number} | {'yes' if context else 'no'} | {edits} |")


if __name__ == "__main__":
    main()
