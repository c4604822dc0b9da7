"""What torch.compile gains on this machine, and what it costs first: encoder and denoiser at one shape, and at others.

    python benchmarks/compiled.py [--model mini] [--seconds 5] [--canvas 32] [--threads 2] [--rounds 15]

Each stage runs plain and compiled by turns (medians), at a fixed shape; the first compiled call is timed by itself, and
so is the first at another length, where shapes become dynamic. Prints a Markdown table. Needs a C++ compiler.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, load_audio, log_mel

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--canvas", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = diffasr.load(args.model, precision="float32").model
    network, sound = model.network, load_audio(SAMPLE)

    def mel_of(seconds: float) -> Tensor:
        return torch.from_numpy(log_mel(sound[: int(seconds * SAMPLE_RATE_HZ)], mels=model.config.encoder.mels))[None]

    mel, other = mel_of(args.seconds), mel_of(args.seconds * 0.8)
    cache = network.prefill(network.hear(mel, torch.tensor([mel.shape[2]])), torch.tensor([1]))

    def encoder_of(call: Callable[..., Any]) -> Callable[[Tensor], Any]:
        return lambda given: call(given, torch.tensor([given.shape[2]]))

    def step_of(call: Callable[..., Any]) -> Callable[[int], Any]:
        return lambda size: call(torch.full((1, size), 300), cache, lengths=torch.tensor([size]))

    stages: list[tuple[str, Callable[[Callable[..., Any]], Callable[[Any], Any]], Callable[..., Any], Any, Any]] = [
        ("encoder", encoder_of, network.encoder, mel, other),
        ("a step of the denoiser", step_of, network.denoise, args.canvas, args.canvas // 2),
    ]
    print("| stage | plain ms | compiled ms | first call s | first call at another length s |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for name, bound, plain, shape, different in stages:
            compiled = torch.compile(plain, dynamic=None)
            eager, fast = bound(plain), bound(compiled)
            first, again = seconds_of(fast, shape), seconds_of(fast, different)
            eager(shape), fast(shape)
            times = [(seconds_of(eager, shape), seconds_of(fast, shape)) for _ in range(args.rounds)]
            slow, quick = (1000 * statistics.median(column) for column in zip(*times, strict=True))
            print(f"| {name} | {slow:.1f} | {quick:.1f} | {first:.1f} | {again:.1f} |", flush=True)


def seconds_of(call: Callable[[Any], Any], given: Any) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call(given)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
