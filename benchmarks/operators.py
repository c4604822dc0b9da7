"""Which operators take the time of a stage: torch's profiler on encoder, prefill, step and a whole transcription.

python benchmarks/operators.py [AUDIO] [--model mini] [--precision auto] [--threads 2] [--calls 10] [--rows 12]
"""

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import diffasr
from diffasr.audio import load_audio

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"


def main() -> None:
    """Profile and print a table a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="?", default=str(SAMPLE))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--rows", type=int, default=12, help="operators a table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asr = diffasr.load(args.model, precision=args.precision)
    clip, network = load_audio(args.audio), asr.model.network
    with torch.inference_mode():
        speech = asr.hear([clip])
        cache = network.prefill(speech, torch.tensor([1]))
        canvas, lengths = torch.arange(48)[None], torch.tensor([48])
        stages = {
            "features and encoder": lambda: asr.hear([clip]),
            "prefill": lambda: network.prefill(speech, torch.tensor([1])),
            "step, canvas of 48": lambda: network.denoise(canvas, cache, lengths=lengths),
            "transcribe": lambda: asr.transcribe(clip, language="de"),
        }
        for name, call in stages.items():
            call()
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(args.calls):
                    call()
            rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
            total = sum(row.self_cpu_time_total for row in rows)
            print(f"\n{name}: {total / 1e3 / args.calls:.2f} ms\n| operator | ms | share | calls |\n{'|---' * 4}|")
            for row in rows[: args.rows]:
                own = row.self_cpu_time_total
                print(f"| {row.key} | {own / 1e3 / args.calls:.3f} | {own / total:.0%} | {row.count // args.calls} |")


if __name__ == "__main__":
    main()
