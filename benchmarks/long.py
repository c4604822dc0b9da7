"""Peak memory and seconds of streaming a long recording against one of ten minutes, each in a process of its own.

    python benchmarks/long.py [--hours 6] [--model tiny] [--steps 1] [--threads 1] [--vad/--no-vad]

The recordings are made of samples/*.opus by turns with pauses, written as FLAC to a temporary folder. ``tiny`` is a
random model of width 32 that the benchmark builds: it shows the memory of reading, of the detector, of windows and
batches, and not that of a real model, which is the same for every length.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from diffasr.audio import SAMPLE_RATE_HZ, load_audio

HERE = Path(__file__).parent.parent


def main() -> None:
    """Measure both and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vad", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return
    print("| recording | peak MiB | segments | gaps | seconds | times real time |\n|---|---|---|---|---|---|")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (10.0, 60 * args.hours):
            path = Path(folder) / "long.flac"
            write_recording(path, 60 * minutes)
            call = [sys.executable, __file__, "--measure", str(path), "--model", args.model, "--steps", str(args.steps),
                    "--threads", str(args.threads), "--vad" if args.vad else "--no-vad"]  # fmt: skip
            found = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
            peaks.append(found["peak"])
            print(
                f"| {minutes:g} min | {found['peak']:.0f} | {found['segments']} | {found['gaps']} "
                f"| {found['seconds']:.0f} | {60 * minutes / found['seconds']:.0f} |", flush=True,
            )  # fmt: skip
    print(
        f"\npeak of the long one over that of the short one: {peaks[1] / peaks[0]:.2f} (+{peaks[1] - peaks[0]:.0f} MiB)"
    )


def write_recording(path: Path, seconds: float) -> None:
    """Samples by turns with pauses between half a second and five, the same each time."""
    parts = [load_audio(p) for p in sorted((HERE / "samples").glob("*.opus"))]
    dice, left = np.random.default_rng(0), round(seconds * SAMPLE_RATE_HZ)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, format="FLAC", subtype="PCM_16") as file:
        number = 0
        while left > 0:
            pause = np.zeros(round(dice.uniform(0.5, 5) * SAMPLE_RATE_HZ), np.float32)
            block = np.concatenate((parts[number % len(parts)], pause))[:left]
            file.write(block)
            left, number = left - len(block), number + 1


def measure(path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Stream one recording and forget each segment."""
    from diffasr.diffusion.options import SamplingOptions
    from diffasr.evaluate.folder import peak_memory_mib
    from diffasr.transcribe import Transcriber, load
    from diffasr.windows import ListenOptions

    if args.model == "tiny":
        sys.path.insert(0, str(HERE / "tests"))
        from conftest import random_model

        asr = Transcriber(random_model())
    else:
        asr = load(args.model, threads=args.threads)
    counts = {"segments": 0, "gaps": 0}

    def count_gap(_: object) -> None:
        counts["gaps"] += 1

    begin = time.perf_counter()
    options, listen = SamplingOptions(steps=args.steps), ListenOptions(vad=args.vad, max_seconds=None)
    for _ in asr.stream(path, options=options, listen=listen, on_gap=count_gap):
        counts["segments"] += 1
    return counts | {"seconds": time.perf_counter() - begin, "peak": peak_memory_mib()}


if __name__ == "__main__":
    main()
