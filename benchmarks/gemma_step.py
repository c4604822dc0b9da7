"""The 26 B system with random weights at real shapes: encoder, prefill and one step, against what the device could do.

    python benchmarks/gemma_step.py [--device cuda] [--batches 1,8,32] [--canvas 192] [--steps 1,4,8,16] [--rounds 10]
        [--experts auto] [--self-conditioning] [--bandwidth GB/S --tflops T]
    python benchmarks/gemma_step.py --tiny        # a model of width 32 on the CPU: shows that the script runs, no more

A step can't be faster than reading every weight that it needs, nor than its products. Bandwidth and rate of products
are measured on the device (a copy of 2 GiB, a square product in bfloat16), unless they are given. Needs about 60 GB on
the device. No text is made: the time of a step does not depend on it, but for the experts that its places choose.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import CANVAS, GemmaNetwork, Prompt, build_backbone, full_text_config
from diffasr.model.info import FRAMES
from diffasr.model.projector import Projector

SECONDS = 30
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
    device = torch.device("cpu" if args.tiny else args.device)
    experts = args.experts if args.experts != "auto" else ("grouped_mm" if device.type == "cuda" else "eager")
    network = build(device, experts, tiny=args.tiny, canvas=args.canvas)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    size = sum(p.numel() for p in network.parameters()) / 1e9
    print(f"{name}, torch {torch.__version__}, experts {experts}, {SECONDS} s windows, canvas {args.canvas}, "
          f"{size:.2f} B parameters, medians of {args.rounds}")  # fmt: skip
    if args.tiny:
        print("A tiny model: none of these figures says anything of the 26 B system; they wait for a GPU.")
    with torch.inference_mode():
        floor = floor_of(network, device, args)
        print(f"measured or given: {floor.bandwidth / 1e9:.0f} GB/s, {floor.rate / 1e12:.2f} Tflop/s; a step reads "
              f"{floor.bytes_read / 1e9:.2f} GB and does {floor.operations / 1e9:.2f} Gflop a place")  # fmt: skip
        times = {}
        for batch in args.batches:
            try:
                times[batch] = measure(network, batch, args)
            except torch.OutOfMemoryError:
                print(f"a batch of {batch} does not fit")
                break
    report(times, floor, args)


def parse() -> argparse.Namespace:
    """Arguments of the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=numbers, default=numbers("1,2,4,8,16,32,64"))
    parser.add_argument("--canvas", type=int, default=192)
    parser.add_argument("--steps", type=numbers, default=numbers("1,4,8,16"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--experts", choices=("auto", "eager", "batched_mm", "grouped_mm"), default="auto")
    parser.add_argument("--self-conditioning", action="store_true")
    parser.add_argument("--bandwidth", type=float, help="GB/s; default: measured")
    parser.add_argument("--tflops", type=float, help="of bfloat16 products; default: measured")
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
        with device:
            backbone = build_backbone(text, max(canvas, CANVAS), experts=experts)
            layers = {"heads": 2, "layers": 1, "hidden": 16} if tiny else {"heads": 12, "layers": 12, "hidden": 3072}
            ear = WhisperEncoder(mels=80, width=width, **layers)
            hidden = 24 if tiny else PROJECTOR_HIDDEN
            bridge = Projector(speech_width=width, hidden=hidden, width=text["hidden_size"], strides=3)
            network = GemmaNetwork(ear, bridge, backbone, PROMPT)
    finally:
        torch.set_default_dtype(before)
    return network.to(device).eval().requires_grad_(False)


def floor_of(network: GemmaNetwork, device: torch.device, args: argparse.Namespace) -> Floor:
    """Weights that a step meets, and the rates of the device."""
    config = network.backbone.config.get_text_config()
    read, met = 0.0, 0.0
    for name, weight in network.backbone.named_parameters():  # what both stacks share comes once
        if ".self_conditioning." in name and not args.self_conditioning:
            continue
        read += weight.numel() * weight.element_size()
        met += weight.numel() * (config.top_k_experts / config.num_experts if ".experts." in name else 1.0)
    source = torch.ones(2**29 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    side = 8192 if device.type == "cuda" else 512
    square = torch.ones(side, side, device=device, dtype=torch.bfloat16)
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
    """Seconds of each stage at this batch."""
    like = network.encoder.conv1.weight
    device, vocabulary = like.device, network.backbone.config.get_text_config().vocab_size
    mel = torch.randn(batch, 80, 2 * FRAMES, device=device, dtype=like.dtype)
    lengths = torch.full((batch,), 2 * FRAMES, device=device)
    known = torch.zeros(batch, dtype=torch.int64, device=device)
    speech = network.hear(mel, lengths)
    cache = network.prefill(speech, known)
    canvas = torch.randint(vocabulary, (batch, args.canvas), device=device)
    places = torch.full((batch,), args.canvas, device=device)
    previous: Tensor | None = None
    if args.self_conditioning:
        previous = network.denoise(canvas, cache, lengths=places)
    return {
        "encoder": timed(lambda: network.hear(mel, lengths), device, args.rounds),
        "prefill": timed(lambda: network.prefill(speech, known), device, args.rounds),
        "step": timed(lambda: network.denoise(canvas, cache, lengths=places, previous=previous), device, args.rounds),
    }


def report(times: dict[int, dict[str, float]], floor: Floor, args: argparse.Namespace) -> None:
    """Milliseconds and floors by batch, then times real time by batch and steps, the best batch of each marked."""
    print("\n| batch | encoder ms | prefill ms | step ms | floor: reading | floor: products | step / floor |\n"
          f"{'|---' * 7}|")  # fmt: skip
    for batch, stage in times.items():
        reading, products = floor.seconds(batch * args.canvas)
        measured = " | ".join(f"{1e3 * stage[name]:.1f}" for name in ("encoder", "prefill", "step"))
        share = stage["step"] / max(reading, products)
        print(f"| {batch} | {measured} | {1e3 * reading:.2f} | {1e3 * products:.2f} | {share:.1f} |")
    speeds = {
        steps: {b: b * SECONDS / (t["encoder"] + t["prefill"] + steps * t["step"]) for b, t in times.items()}
        for steps in args.steps
    }
    print(
        f"\n| times real time | {' | '.join(f'batch {b}' for b in times)} | best batch |\n{'|---' * (len(times) + 2)}|"
    )
    for steps, by_batch in speeds.items():
        best = max(by_batch, key=by_batch.__getitem__)
        print(f"| {steps} steps | {' | '.join(f'{s:.0f}' for s in by_batch.values())} | {best} |")


if __name__ == "__main__":
    main()
