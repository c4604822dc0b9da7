"""The 26 B system with random weights at real shapes: encoder, prefill and one step, against what the device could do.

    python benchmarks/gemma_step.py [--device cuda] [--batches 1,8,32] [--canvas 192] [--steps 1,4,8,16] [--rounds 10]
        [--experts auto] [--self-conditioning] [--bandwidth GB/S --tflops T] [--limit 60] [--out FILE]
    python benchmarks/gemma_step.py --tiny        # a model of width 32 on the CPU: shows that the script runs, no more

A step can't be faster than reading every weight that it needs, nor than its products. Bandwidth and rate of products
are measured on the device (a copy of 2 GiB, a square product of random numbers in bfloat16), unless they are given.
Needs 52 GB on the device for the weights, and about 0.7 GB for each row of a batch. No text is made: the time of a step
does not depend on it, but for the experts that its places choose. Random routers choose them almost evenly, so that of
128 experts a canvas of 192 places with 8 each leaves none unread: 128 * (1 - 8/128) ** 192 is 0.0005. Trained ones
choose less evenly; the floor, all experts once a step, is right for both as long as none is left out. How many were
chosen is counted and printed.

On CUDA, prefill and step are measured kernel by kernel and as replays of what was recorded (diffasr.model.replay), at
every batch, though the product records small ones only; with them the difference of their logits and the time of the
graph alone, without what the host does around it. Where nothing can be recorded, the first error and its line are told,
and recording is tried once more with fewer of CUDA's checks.

A batch that does not fit ends the run with what was measured before it, and so does --limit. --out writes the figures
as JSON, anew after each batch.
"""

import argparse
import json
import re
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import CANVAS, GemmaNetwork, Prompt, build_backbone, full_text_config
from diffasr.model.info import FRAMES
from diffasr.model.projector import Projector
from diffasr.model.replay import PLACES, GraphRecorder, Replays

SECONDS = 30
FULL = "out of memory|ALLOC_FAILED"
SPEECH_WIDTH, PROJECTOR_HIDDEN = 768, 1408  # Whisper-small, and the 26 B system's bridge
PROMPT = Prompt(before=(2, 7, 8), after=(9,), languages=(10, 11, 12, 13, 14, 15), end=1)
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 8, "global_head_dim": 16,
    "sliding_window": 64, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 1024, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a step needs at least, and the device's rates."""

    bytes_read: float
    """Of weights, a step."""
    operations: float
    """Of a place: two a weight that it meets."""
    bandwidth: float
    """Bytes a second."""
    rate: float
    """Operations a second."""

    def seconds(self, places: int) -> tuple[float, float]:
        """Of a step over so many places: for reading, for products."""
        return self.bytes_read / self.bandwidth, self.operations * places / self.rate


def main() -> None:
    """Build, measure, print."""
    args = parse()
    begun = time.perf_counter()
    device = torch.device("cpu" if args.tiny else args.device)
    experts = args.experts if args.experts != "auto" else ("grouped_mm" if device.type == "cuda" else "eager")
    network = build(device, experts, tiny=args.tiny, canvas=args.canvas)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    size = sum(p.numel() for p in network.parameters()) / 1e9
    print(f"{name}, torch {torch.__version__}, experts {experts}, {SECONDS} s windows, canvas {args.canvas}, "
          f"{size:.2f} B parameters, medians of {args.rounds}; built after {time.perf_counter() - begun:.0f} s",
          flush=True)  # fmt: skip
    if args.tiny:
        print("A tiny model: none of these figures says anything of the 26 B system; they wait for a GPU.")
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "experts": experts, "canvas": args.canvas,
                             "rounds": args.rounds, "self_conditioning": args.self_conditioning}  # fmt: skip
    times: dict[int, dict[str, float]] = {}
    with torch.inference_mode():
        floor = floor_of(network, device, args)
        print(f"measured or given: {floor.bandwidth / 1e9:.0f} GB/s, {floor.rate / 1e12:.2f} Tflop/s; a step reads "
              f"{floor.bytes_read / 1e9:.2f} GB and does {floor.operations / 1e9:.2f} Gflop a place",
              flush=True)  # fmt: skip
        for batch in args.batches:
            if times and time.perf_counter() - begun > args.limit:
                print(f"{args.limit:.0f} s are over: no batch of {batch}")
                break
            try:
                times[batch] = measure(network, batch, args)
            except RuntimeError as error:  # of the allocator, of cuBLAS or of the driver
                if not isinstance(error, torch.OutOfMemoryError) and not re.search(FULL, str(error)):
                    raise
                print(f"a batch of {batch} does not fit")
                break
            print(f"  batch {batch}: {', '.join(f'{k} {v:.4g}' for k, v in times[batch].items())}", flush=True)
            write(args.out, facts, floor, times)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    report(times, floor, args)


def write(out: Path | None, facts: dict[str, Any], floor: Floor, times: dict[int, dict[str, float]]) -> None:
    """The figures so far as JSON, where that is wanted."""
    if out is not None:
        out.write_text(json.dumps(facts | {"floor": asdict(floor), "batches": times}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Arguments of the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=numbers, default=numbers("1,2,4,8,16,24,32,40,48,64"))
    parser.add_argument("--canvas", type=int, default=192)
    parser.add_argument("--steps", type=numbers, default=numbers("1,4,8,16"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--experts", choices=("auto", "eager", "batched_mm", "grouped_mm"), default="auto")
    parser.add_argument("--self-conditioning", action="store_true")
    parser.add_argument("--bandwidth", type=float, help="GB/s; default: measured")
    parser.add_argument("--tflops", type=float, help="of bfloat16 products; default: measured")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no further batch is begun")
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Whole numbers between commas, in order."""
    return sorted(int(part) for part in text.split(","))


def build(device: torch.device, experts: Any, *, tiny: bool, canvas: int) -> GemmaNetwork:
    """The system with random weights, in bfloat16 on an accelerator."""
    text = TINY if tiny else full_text_config()
    width = SPEECH_WIDTH if not tiny else 16
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    try:
        with torch.device("meta"):  # the library makes both stacks before it ties them: 104 GB
            backbone = build_backbone(text, max(canvas, CANVAS), experts=experts)
        fill_(backbone, device)
        with device:
            layers = {"heads": 2, "layers": 1, "hidden": 16} if tiny else {"heads": 12, "layers": 12, "hidden": 3072}
            ear = WhisperEncoder(mels=80, width=width, **layers)
            hidden = 24 if tiny else PROJECTOR_HIDDEN
            bridge = Projector(speech_width=width, hidden=hidden, width=text["hidden_size"], strides=3)
            network = GemmaNetwork(ear, bridge, backbone, PROMPT)
    finally:
        torch.set_default_dtype(before)
    return network.eval().requires_grad_(False)


def fill_(backbone: Any, device: torch.device) -> None:
    """Random weights on ``device`` for a backbone on the meta device; what is shared there is shared here."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, and kept alive
    for module in backbone.modules():
        for place in (module._parameters, module._buffers):
            for name, value in place.items():
                if value is not None and id(value) not in made:
                    is_weight = isinstance(value, nn.Parameter)
                    blank = (torch.empty_like if is_weight else torch.ones_like)(value, device=device)  # scalars are 1
                    made[id(value)] = value, nn.Parameter(blank, requires_grad=False) if is_weight else blank
                if value is not None:
                    place[name] = made[id(value)][1]
    backbone.initialize_weights()  # as the library does off the meta device: in place, rotary tables too


def floor_of(network: GemmaNetwork, device: torch.device, args: argparse.Namespace) -> Floor:
    """Weights that a step meets, and the rates of the device."""
    config = network.backbone.config.get_text_config()
    read, met = 0.0, 0.0
    for name, weight in network.backbone.named_parameters():  # what both stacks share comes once
        if ".self_conditioning." in name and not args.self_conditioning:
            continue
        read += weight.numel() * weight.element_size()
        met += weight.numel() * (config.top_k_experts / config.num_experts if ".experts." in name else 1.0)
    source = torch.randn(2**29 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    side = 8192 if device.type == "cuda" else 512
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)  # of ones it would be faster
    copying = timed(lambda: target.copy_(source), device, args.rounds)
    product = timed(lambda: square @ square, device, args.rounds)
    return Floor(
        bytes_read=read,
        operations=2 * met,
        bandwidth=args.bandwidth * 1e9 if args.bandwidth else 2 * source.numel() * source.element_size() / copying,
        rate=args.tflops * 1e12 if args.tflops else 2 * side**3 / product,
    )


def timed(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a call, two calls of warm-up left out."""
    seconds = []
    for _ in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def measure(network: GemmaNetwork, batch: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage at this batch, those until the host was done with a step, how many experts of a layer its
    places chose, and the most bytes that were held."""
    like = network.encoder.conv1.weight
    device, vocabulary = like.device, network.backbone.config.get_text_config().vocab_size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    mel = torch.randn(batch, 80, 2 * FRAMES, device=device, dtype=like.dtype)
    lengths = torch.full((batch,), 2 * FRAMES, device=device)
    known = torch.zeros(batch, dtype=torch.int64, device=device)
    speech = network.hear(mel, lengths)
    encoder = timed(lambda: network.hear(mel, lengths), device, args.rounds)
    network.replays.is_on = False
    prefill = timed(lambda: network.prefill(speech, known), device, args.rounds)
    cache = network.prefill(speech, known)
    canvas = torch.randint(vocabulary, (batch, args.canvas), device=device)
    places = torch.full((batch,), args.canvas, device=device)
    previous: Tensor | None = None
    if args.self_conditioning:
        previous = network.denoise(canvas, cache, lengths=places)
    launched: list[float] = []

    def step() -> Tensor:
        started = time.perf_counter()
        logits = network.denoise(canvas, cache, lengths=places, previous=previous)
        launched.append(time.perf_counter() - started)
        return logits

    found = {
        "encoder": encoder,
        "prefill": prefill,
        "step": timed(step, device, args.rounds),
        "host": statistics.median(launched[2:]),
        "experts": chosen_experts(network, step),
        "peak": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    }
    if device.type == "cuda" and not args.self_conditioning and args.experts != "eager":
        calls: dict[str, Callable[[], Any]] = {
            "replayed prefill": lambda: network.prefill(speech, known),
            "replayed step": step,
        }
        found |= replayed(network, calls, batch, args)
    return found


def replayed(
    network: GemmaNetwork, calls: dict[str, Callable[[], Any]], batch: int, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds of ``calls``, the last of them a step, as the product replays them, and of the step's graph alone."""
    device = network.encoder.conv1.weight.device
    plain = calls["replayed step"]()[0].clone()  # of the first row
    for mode in ("thread_local", "relaxed"):
        network.replays = Replays(partial(GraphRecorder, mode))
        network.replays.places = 2**30
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = {name: timed(call, device, args.rounds) for name, call in calls.items()}
            except torch.OutOfMemoryError:
                print(f"  batch {batch}: no room for what is recorded")
                break
        if network.replays.is_on:
            *_, tape = network.replays._tapes.values()  # the step's was used last
            found["graph"] = timed(tape.replay, device, args.rounds)
            found["difference"] = float((calls["replayed step"]()[0] - plain).abs().max())
            network.replays.forget()
            return found
        print(f"  batch {batch}, capture mode {mode}: {' '.join(str(warning.message) for warning in told)}", flush=True)
    network.replays.is_on = False
    return {}


def chosen_experts(network: GemmaNetwork, step: Callable[[], object]) -> float:
    """How many experts of a layer are chosen by some place of a step, the mean of the layers."""
    counts: list[int] = []
    routers = [layer.router for layer in network.backbone.model.decoder.layers]
    hooks = [r.register_forward_hook(lambda _, __, out: counts.append(len(out[2].unique()))) for r in routers]
    step()
    for hook in hooks:
        hook.remove()
    return statistics.mean(counts)


def report(times: dict[int, dict[str, float]], floor: Floor, args: argparse.Namespace) -> None:
    """Milliseconds and floors by batch, then times real time by batch and steps, the best batch of each marked."""
    print("\n| batch | encoder ms | prefill ms | step ms | of it the host | floor: reading | floor: products "
          f"| step / floor | experts chosen | peak GB |\n{'|---' * 10}|")  # fmt: skip
    for batch, stage in times.items():
        reading, products = floor.seconds(batch * args.canvas)
        measured = " | ".join(f"{1e3 * stage[name]:.1f}" for name in ("encoder", "prefill", "step", "host"))
        share = stage["step"] / max(reading, products)
        print(f"| {batch} | {measured} | {1e3 * reading:.2f} | {1e3 * products:.2f} | {share:.1f} | "
              f"{stage['experts']:.1f} | {stage['peak'] / 1e9:.1f} |")  # fmt: skip
    if not times:
        return
    if any("graph" in stage for stage in times.values()):
        print(f"\n| batch | replayed prefill ms | replayed step ms | of it the graph | graph / floor | differs by |"
              f"\n{'|---' * 6}|")  # fmt: skip
    for batch, stage in times.items():
        if "graph" in stage:
            measured = " | ".join(f"{1e3 * stage[name]:.1f}" for name in ("replayed prefill", "replayed step", "graph"))
            share = stage["graph"] / max(floor.seconds(batch * args.canvas))
            print(f"| {batch} | {measured} | {share:.1f} | {stage['difference']:.2g} |")
    speeds = {steps: {b: b * SECONDS / product(b, steps, t, args) for b, t in times.items()} for steps in args.steps}
    print(
        f"\n| times real time | {' | '.join(f'batch {b}' for b in times)} | best batch |\n{'|---' * (len(times) + 2)}|"
    )
    for steps, by_batch in speeds.items():
        best = max(by_batch, key=by_batch.__getitem__)
        print(f"| {steps} steps | {' | '.join(f'{s:.0f}' for s in by_batch.values())} | {best} |")


def product(batch: int, steps: int, stage: dict[str, float], args: argparse.Namespace) -> float:
    """Seconds of a batch of windows as the product decodes it: small ones by replays where they were had."""
    is_recorded = "graph" in stage and (1 << (batch - 1).bit_length()) * args.canvas <= PLACES
    kind = "replayed " if is_recorded else ""
    return stage["encoder"] + stage[f"{kind}prefill"] + steps * stage[f"{kind}step"]


if __name__ == "__main__":
    main()
