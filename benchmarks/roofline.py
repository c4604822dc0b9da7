"""What each stage must compute and read, how long two cores need for that at their measured rate, and what we reach.

    python benchmarks/roofline.py [--model mini] [--seconds 5] [--canvas 48] [--rows 1] [--threads 2] [--rounds 15]

Products: counted by hooks on the linear layers, convolutions and tables (int8), by formula for attention (float32).
Bytes: weights read once a call, as they lie in memory. Rates: the best of several large products in each precision, and
of a copy of memory, in the same rounds as the stages, so that a slow moment falls on both. Prints Markdown tables.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, load_audio, log_mel
from diffasr.diffusion.sampler import SamplingOptions, sample
from diffasr.model.layers import Attention
from diffasr.model.quantised import QuantisedLinear, QuantisedTable, is_fast, quantise
from diffasr.transcribe import Transcriber

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"
SHAPES = ((256, 512, 2048), (56, 512, 2048), (48, 512, 27_318))
"""Rows, width in, width out: an encoder's layer, a step's layer, a step's head."""


@dataclass
class Work:
    """What one call of a stage does."""

    products: float = 0.0
    """Floating point or integer operations of layers, two a multiplication."""
    attention: float = 0.0
    """Operations of attention."""
    read: float = 0.0
    """Bytes of weights."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--precision", choices=("auto", "float32", "int8"), default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--canvas", type=int, default=48)
    parser.add_argument("--rows", type=int, default=1, help="clips in a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asr = diffasr.load(args.model, precision=args.precision)
    is_int8 = args.precision == "int8" or (args.precision == "auto" and is_fast())
    with torch.inference_mode():
        stages, rates = stages_of(asr, args), rates_of()
        done = {name: counted(asr.model.network, call) for name, call in stages.items()}
        times = alternated(stages | rates, args.rounds)
    print(f"{args.rows} x {args.seconds:g} s, canvas {args.canvas}, {args.threads} threads, torch {torch.__version__}, "
          f"{'int8' if is_int8 else 'float32'}, medians of {args.rounds} rounds, rates the best")  # fmt: skip
    best = print_rates(times)
    print_stages(done, times, best, is_int8=is_int8)


def stages_of(asr: Transcriber, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The parts of a decode, each ready to be called again and again."""
    network, tokenizer = asr.model.network, asr.model.tokenizer
    clip = np.resize(load_audio(SAMPLE), int(args.seconds * SAMPLE_RATE_HZ))
    features = torch.from_numpy(log_mel(clip)).repeat(args.rows, 1, 1)
    frames = torch.full((args.rows,), features.shape[2])
    speech = network.hear(features, frames)
    languages = torch.ones(args.rows, dtype=torch.int64)
    cache = network.prefill(speech, languages)
    dice = torch.Generator().manual_seed(0)
    canvas = torch.randint(tokenizer.size, (args.rows, args.canvas), generator=dice)
    lengths = torch.full((args.rows,), args.canvas)
    hints = torch.full_like(canvas, -1)
    logits = network.denoise(canvas, cache, lengths=lengths, hints=hints)
    one = SamplingOptions(steps=1)
    reader = network.ar_reader(cache)
    reader(canvas[:, :20])
    return {
        "features": lambda: [log_mel(clip) for _ in range(args.rows)],
        "encoder": lambda: network.hear(features, frames),
        "prefill": lambda: network.prefill(speech, languages),
        "step": lambda: network.denoise(canvas, cache, lengths=lengths, hints=hints),
        "sampler": lambda: list(sample(lambda *_: logits, canvas, lengths, one, end=tokenizer.end)),
        "AR token": lambda: reader(canvas[:, :1]),
    }


def rates_of() -> dict[str, Callable[[], object]]:
    """Products in each precision, named by their shape, and a copy of 64 MiB."""
    calls: dict[str, Callable[[], object]] = {}
    for rows, width, out in SHAPES:
        weight, x = torch.randn(out, width), torch.randn(rows, width)
        name = f"{rows} x {width} x {out}"
        calls[f"float32 {name}"] = partial(F.linear, x, weight)
        calls[f"bfloat16 {name}"] = partial(F.linear, x.bfloat16(), weight.bfloat16())
        if is_fast():
            calls[f"int8 {name}"] = partial(QuantisedLinear(*quantise(weight)), x)
    source = torch.ones(2**24)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    return calls


def counted(network: nn.Module, call: Callable[[], object]) -> Work:
    """What ``call`` does inside ``network``."""
    work, table = Work(), network.decoder.embed_tokens
    attend, unembed = Attention.attend, network.decoder.unembed

    def layer(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        weight = module.packed if isinstance(module, QuantisedLinear) else module.weight
        places = out[:, 0] if isinstance(module, nn.Conv1d) else args[0][..., 0]
        work.products += 2 * weight.numel() * places.numel()
        work.read += weight.numel() * weight.element_size()

    def attention(self: Attention, queries: Tensor, source: Any, *rest: Any, **more: Any) -> Tensor:
        work.attention += 4 * queries.numel() * source[0].shape[2]
        return attend(self, queries, source, *rest, **more)

    def head(hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        if not isinstance(table, QuantisedTable):  # a product without a module
            weight = table.weight if labels is None else table.weight[labels]
            work.products += 2 * hidden[..., 0].numel() * weight.numel()
            work.read += 4 * weight.numel()
        return unembed(hidden, labels)

    layers = [m for m in network.modules() if isinstance(m, QuantisedLinear | nn.Linear | nn.Conv1d)]
    handles = [module.register_forward_hook(layer) for module in layers]
    Attention.attend, network.decoder.unembed = attention, head
    try:
        call()
    finally:
        Attention.attend = attend
        del network.decoder.unembed
        for handle in handles:
            handle.remove()
    return work


def alternated(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, the first two rounds left out."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 2):
        for name, call in calls.items():
            call()  # once not counted: what it needs is then as near as in a run of its own kind
            started = time.perf_counter()
            call()
            if turn > 1:
                times[name].append(time.perf_counter() - started)
    return dict(times)


def print_rates(times: dict[str, list[float]]) -> dict[str, float]:
    """The table of rates; returns the best operations a second of each precision, and bytes a second."""
    best: defaultdict[str, float] = defaultdict(float)
    print(f"\n| product | GFLOP/s or Gop/s |\n{'|---' * 2}|")
    for name, measured in times.items():
        kind, _, shape = name.partition(" ")
        if kind not in ("float32", "bfloat16", "int8") or " x " not in shape:
            continue
        operations = 2.0 * np.prod([int(size) for size in shape.split(" x ")])
        rate = operations / min(measured)
        best[kind] = max(best[kind], rate)
        print(f"| {name} | {rate / 1e9:.0f} |")
    best["read"] = 4 * 2**24 / min(times["copy"])  # what is read; as much is written
    print(f"| memory, copying | {best['read'] / 1e9:.1f} GB/s read |")
    return dict(best)


def print_stages(
    done: dict[str, Work], times: dict[str, list[float]], best: dict[str, float], *, is_int8: bool
) -> None:
    """The table of stages."""
    rate = best["int8"] if is_int8 else best["float32"]
    print(f"\n| stage | Gop layers | Gop attention | MB weights | ms at best | ms measured | share |\n{'|---' * 7}|")
    for name, work in done.items():
        compute = work.products / rate + work.attention / best["float32"]
        floor = max(compute, work.read / best["read"])
        measured = statistics.median(times[name])
        share = f"{floor / measured:.0%}" if work.products else "–"
        print(f"| {name} | {work.products / 1e9:.2f} | {work.attention / 1e9:.3f} | {work.read / 1e6:.1f} | "
              f"{1e3 * floor:.2f} | {1e3 * measured:.2f} | {share} |")  # fmt: skip


if __name__ == "__main__":
    main()
