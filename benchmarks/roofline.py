"""What each stage must compute and read, how long two cores need for that at their measured rate, and what we reach.

    python benchmarks/roofline.py [--model mini] [--seconds 5] [--tokens 17] [--changed 4] [--threads 2] [--rounds 15]

Stages are those of one clip in the runtime without torch: a first reading of a text of so many tokens, a step that
reads so many again, a token of autoregressive writing. Products are counted from the sizes in config.json. Bytes:
weights read once a call, as they lie in memory. Rates: the best of several products of the stages' own shapes, and of a
copy of memory, in the same rounds as the stages, so that a slow moment falls on both. Prints Markdown tables.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, load_audio, log_mel
from diffasr.model.config import DecoderConfig
from diffasr.runtime.graph import Graph
from diffasr.runtime.network import RuntimeNetwork
from diffasr.runtime.reader import Row
from diffasr.runtime.weights import Weights
from diffasr.transcribe import Transcriber

SAMPLE = Path(__file__).parent.parent / "samples" / "de.opus"
LAYERS = (("encoder.layers.0.fc1", 256), ("decoder.layers.0.fc1", 16), ("decoder.layers.0.fc1", 1))
"""Of the checkpoint, with the rows that they are measured with: an encoder's, a reading's, a token's."""
HEAD = ("decoder.embed_tokens", 16)


@dataclass(frozen=True)
class Work:
    """What one call of a stage does."""

    products: float = 0.0
    """Multiplications with weights."""
    attention: float = 0.0
    """Multiplications in attention, in float32."""
    read: float = 0.0
    """Bytes of weights."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--changed", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    asr = diffasr.load(args.model, threads=args.threads)
    done, stages = stages_of(asr, args)
    times = alternated(stages | rates_of(args), args.rounds)
    print(f"{args.seconds:g} s, {args.tokens} tokens, {args.threads} threads, ONNX Runtime {onnxruntime.__version__}, "
          f"medians of {args.rounds} rounds, rates the best")  # fmt: skip
    print_stages(done, times, print_rates(times))


def stages_of(asr: Transcriber, args: argparse.Namespace) -> tuple[dict[str, Work], dict[str, Callable[[], object]]]:
    """The parts of a decode, each ready to be called again and again, and what they do."""
    network, config = asr.model.network, asr.model.config
    if not isinstance(network, RuntimeNetwork) or not isinstance(config.decoder, DecoderConfig):
        raise SystemExit(f"{config.name} is not run without torch here: name a whisper checkpoint in int8")
    ears, bridge, text = config.encoder, config.projector, config.decoder
    clip = np.resize(load_audio(SAMPLE), int(args.seconds * SAMPLE_RATE_HZ))
    mel = log_mel(clip)
    speech = network.listen([mel])
    cache = network.prefill(speech, [1])
    frames, slots, labels = len(speech.frames[0]), *cache.ctc[0].shape
    wide, square = ears.width, text.width**2
    row, tokens = Row(cache.speech[0]), [*network.prefixes[1], *range(1000, 1000 + args.tokens)]
    decoder = network.decoder

    def block(rows: float, width: int, hidden: int) -> float:
        return rows * (4 * width**2 + 2 * width * hidden)

    def reading(new: int) -> Work:
        layer = 6 * square + 2 * text.width * text.hidden
        seen = len(tokens) + frames
        return Work(text.layers * new * layer, 2 * text.layers * new * seen * text.width, text.layers * layer)

    def read(new: int) -> None:
        row.seen = row.seen[: len(tokens) - new]
        decoder.read(row, tokens)

    def head(rows: int) -> Work:
        return Work(rows * text.width * text.vocabulary, 0.0, text.width * text.vocabulary)

    hidden = np.ones((args.changed, text.width), np.float32)
    convs = sum(
        slots * 3 * (wide if n == 0 else bridge.hidden) * bridge.hidden for n in range(bridge.strides + bridge.steady)
    )
    heard = ears.layers * block(1, wide, ears.hidden) + 3 * wide**2
    bridged = bridge.layers * block(1, text.width, 4 * text.width) + bridge.hidden * text.width + labels * text.width
    listened = 2 * text.layers * wide * text.width
    done = {
        "features": Work(),
        "encoder": Work(frames * heard, 2 * ears.layers * frames**2 * wide, heard),
        "CTC": Work(slots * bridged + convs, 2 * bridge.layers * slots**2 * text.width, bridged + convs / slots),
        "keys and values of the sound": Work(frames * listened, 0.0, listened),
        "first reading": reading(len(tokens)),
        "reading again": reading(args.changed),
        "a token": reading(1),
        "vocabulary": head(args.changed),
    }
    calls: dict[str, Callable[[], object]] = {
        "features": lambda: log_mel(clip),
        "encoder": lambda: network.listen([mel]),
        "CTC": lambda: network.ctc_rows(speech),
        "keys and values of the sound": lambda: network.listener.run(None, {"frames": speech.frames[0]}),
        "first reading": lambda: read(len(tokens)),
        "reading again": lambda: read(args.changed),
        "a token": lambda: read(1),
        "vocabulary": lambda: decoder.said([hidden], [1.0]),
    }
    return done, calls


def rates_of(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Products of layers of the checkpoint, named by their shape, and a copy of 64 MiB."""
    from diffasr.model.hub import find

    weights = Weights(find(args.model) / "model.safetensors")
    calls: dict[str, Callable[[], object]] = {}
    for name, rows in (*LAYERS, HEAD):
        out, width = weights.place(f"{name}.weight").shape
        graph = Graph(weights)
        graph.output("out", graph.linear(graph.input("x", ["n", width]), name))
        session = graph.session(threads=args.threads)
        calls[f"{rows} x {width} x {out}"] = partial(session.run, None, {"x": np.ones((rows, width), np.float32)})
    source = np.ones(2**24, np.float32)
    target = np.empty_like(source)
    calls["copy"] = lambda: np.copyto(target, source)
    square = np.ones((512, 512), np.float32)
    calls["float32 512 x 512 x 512"] = lambda: square @ square
    return calls


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
    """The table of rates; returns the best multiplications a second, and bytes."""
    best: defaultdict[str, float] = defaultdict(float)
    print(f"\n| product | G multiplications/s |\n{'|---' * 2}|")
    for name in [name for name in times if " x " in name]:
        kind = "float32" if name.startswith("float32 ") else "whole"
        rate = np.prod([float(size) for size in name.removeprefix("float32 ").split(" x ")]) / min(times[name])
        best[kind] = max(best[kind], float(rate))
        print(f"| {name} | {rate / 1e9:.0f} |")
    best["read"] = 4 * 2**24 / min(times["copy"])  # what is read; as much is written
    print(f"| memory, copying | {best['read'] / 1e9:.1f} GB/s read |")
    return dict(best)


def print_stages(done: dict[str, Work], times: dict[str, list[float]], best: dict[str, float]) -> None:
    """The table of stages."""
    print(f"\n| stage | G layers | G attention | MB weights | ms at best | ms measured | share |\n{'|---' * 7}|")
    for name, work in done.items():
        compute = work.products / best["whole"] + work.attention / best["float32"]
        floor = max(compute, work.read / best["read"])
        measured = statistics.median(times[name])
        share = f"{floor / measured:.0%}" if work.products else "–"
        print(f"| {name} | {work.products / 1e9:.2f} | {work.attention / 1e9:.3f} | {work.read / 1e6:.1f} | "
              f"{1e3 * floor:.2f} | {1e3 * measured:.2f} | {share} |")  # fmt: skip


if __name__ == "__main__":
    main()
