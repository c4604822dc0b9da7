"""What one clip costs: seconds by number of steps, and the peak memory of the process.

    python benchmarks/cost.py [AUDIO] [--model mini] [--seconds 10] [--threads 2] [--repeats 9]

The clip is AUDIO, repeated or cut to the length asked for. Prints medians and ratios; every row is measured in turn,
round by round, so that a slow moment of a shared machine falls on all of them.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, load_audio

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="?", default=str(SAMPLE))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    started = time.perf_counter()
    asr = diffasr.load(args.model, threads=args.threads)
    loading = time.perf_counter() - started
    clip = np.resize(load_audio(args.audio), int(args.seconds * SAMPLE_RATE_HZ))
    rows = {f"{n} steps": diffasr.SamplingOptions(steps=n, stop_entropy=0.0) for n in (1, 2, 4, 8, 16)}
    rows["8 steps, adaptive stop"] = diffasr.SamplingOptions(steps=8)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for options in rows.values():  # warm-up
        asr.transcribe(clip, language="de", options=options)
    for _ in range(args.repeats):
        for name, options in rows.items():
            started = time.perf_counter()
            asr.transcribe(clip, language="de", options=options)
            times[name].append(time.perf_counter() - started)

    base = statistics.median(times["8 steps"])
    print(
        f"{args.seconds:g} s of audio, {args.threads} threads, ONNX Runtime {onnxruntime.__version__}, "
        f"{args.repeats} rounds"
    )
    print(f"| decoding | seconds | of 8 steps | times real time |\n{'|---' * 4}|")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"| {name} | {median:.3f} | {median / base:.2f} | {args.seconds / median:.0f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"loading (imports not counted): {loading:.2f} s; peak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
