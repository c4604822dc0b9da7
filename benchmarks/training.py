"""What a training step costs: seconds, tokens and audio a second, memory, and the share of the device's peak.

    python benchmarks/training.py gemma-tiny                       # anywhere, a minute
    python benchmarks/training.py mini --rows 8 --seconds 10
    python benchmarks/training.py gemma-26b --rows 8 --recompute --peak 989    # one H100: 989 TFLOP/s in bfloat16
    python benchmarks/training.py whisper-large-v3-turbo --rows 16 --peak 989

Random weights, random speech of the real shapes, all three losses, the loop's own optimiser. Operations are counted by
train/flops.py of a gemma, by torch of a whisper. The median of the steps counts; the first two are thrown away.
"""

import argparse
import resource
import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffasr.diffusion import ctc
from diffasr.model import checkpoint
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import CANVAS, GemmaNetwork, Prompt, add_lora, build_backbone, full_text_config
from diffasr.model.projector import Projector
from diffasr.text import LANGUAGES, PREFIX_TOKENS, Tokenizer
from diffasr.train.data import Batch, Mel
from diffasr.train.distributed import recompute_
from diffasr.train.flops import Shapes, ear_flops, step_flops
from diffasr.train.loop import _prepare
from diffasr.train.stages import Stage
from diffasr.train.step import losses

TINY = full_text_config() | {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "num_experts": 8,
    "moe_intermediate_size": 32, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
EARS = {  # width, layers, heads, mel bands of the encoder, and layers of the decoder
    "whisper-tiny": (384, 4, 6, 80, 4), "whisper-base": (512, 6, 8, 80, 6), "whisper-small": (768, 12, 12, 80, 12),
    "whisper-medium": (1024, 24, 16, 80, 24), "whisper-large-v3": (1280, 32, 20, 128, 32),
    "whisper-large-v3-turbo": (1280, 32, 20, 128, 4),
}  # fmt: skip


def words(size: int) -> Tokenizer:
    """A tokenizer of so many tokens, which nobody will read."""
    special = [*PREFIX_TOKENS, *(f"<|{code}|>" for code in LANGUAGES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"word{i}" for i in range(size - len(alphabet) - len(special)))]
    backend = Backend(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return Tokenizer(backend)


def ears_of(name: str, mode: Any) -> EncoderConfig:
    """Sizes of a Whisper's encoder."""
    width, layers, heads, mels, _ = EARS[name]
    return EncoderConfig(mels=mels, width=width, heads=heads, layers=layers, hidden=4 * width, mode=mode)


def gemma(text: dict[str, Any], device: torch.device) -> tuple[nn.Module, Tokenizer, EncoderConfig]:
    """A DiffusionGemma of these sizes with random weights, made where it will run."""
    ears = ears_of("whisper-small" if text["hidden_size"] > 1000 else "whisper-tiny", "whole")
    with device:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else default)
        backbone = build_backbone(text, CANVAS)
        torch.set_default_dtype(default)
        add_lora(backbone, 16)
        encoder = WhisperEncoder(mels=ears.mels, width=ears.width, heads=ears.heads, layers=ears.layers,
                                 hidden=ears.hidden)  # fmt: skip
        width = text["hidden_size"]
        projector = Projector(speech_width=ears.width, hidden=width // 2, width=width, strides=3)
        prompt = Prompt(before=tuple(range(10)), after=(10, 11, 12), languages=(20, 21, 22, 23, 24, 25), end=0)
        network = GemmaNetwork(encoder, projector, backbone, prompt)
    return network, words(text["vocab_size"]), ears


def whisper(name: str, device: torch.device) -> tuple[nn.Module, Tokenizer, EncoderConfig]:
    """The mini, or a Whisper of a published size with random weights."""
    if name == "mini":
        model = checkpoint.load("mini", device=str(device), precision="float32")
        return model.network, model.tokenizer, model.config.encoder
    ears, width = ears_of(name, "natural"), EARS[name][0]
    decoder = DecoderConfig(vocabulary=51_866, width=width, heads=EARS[name][2], layers=EARS[name][4], hidden=4 * width)
    bridge = ProjectorConfig(hidden=768, strides=2, layers=2)
    tokenizer = words(decoder.vocabulary)
    config = ModelConfig(name=name, encoder=ears, decoder=decoder, projector=bridge)
    with device:
        network = checkpoint.build(config, tokenizer)
    return network.to(device), tokenizer, ears


def batch_of(ears: EncoderConfig, tokenizer: Tokenizer, args: argparse.Namespace, device: torch.device) -> Batch:
    """Noise to hear and noise to write."""
    frames = 3000 if ears.mode == "whole" else round(args.seconds * 100)
    rows = args.rows
    with device:
        tokens = torch.randint(1, 250, (rows, args.text))
        lengths = torch.full((rows,), args.text)
        sound = Mel(features=torch.randn(rows, ears.mels, frames), lengths=torch.full((rows,), frames))
        return Batch(speech=sound, languages=torch.zeros(rows, dtype=torch.long), tokens=tokens, lengths=lengths,
                     pieces=tokens.clone(), piece_lengths=lengths)  # fmt: skip


def parse() -> argparse.Namespace:
    """Arguments of the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["gemma-tiny", "gemma-26b", "mini", *EARS])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="audio a row; a gemma hears 30 s of it")
    parser.add_argument("--text", type=int, default=48, help="tokens a row")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in the precision used")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def measure(args: argparse.Namespace, device: torch.device) -> tuple[float, float, int]:
    """Median seconds of a step, its operations, and how many parameters learn."""
    text = full_text_config() if args.model == "gemma-26b" else TINY
    is_gemma = args.model.startswith("gemma")
    network, tokenizer, ears = gemma(text, device) if is_gemma else whisper(args.model, device)
    if args.recompute:
        recompute_(network)
    rates = {"projector": 1e-4, "lora": 1e-4} | ({} if is_gemma else {"conditioning": 1e-4})
    stage = Stage(name="benchmark", steps=1, rates=rates, ctc=0.3, ar=1.0, draft_share=0.5, slack=0)
    optimiser = _prepare(network, stage, 0)
    parameters = optimiser.parameters
    batch = batch_of(ears, tokenizer, args, device)

    def step(number: int) -> None:
        generator = torch.Generator(device).manual_seed(number)
        with device, torch.autocast(device.type, torch.bfloat16):
            parts = losses(network, batch, stage, tokenizer=tokenizer, generator=generator)  # type: ignore[arg-type]
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = []
    for number in range(args.steps + 2):
        started = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - started)
    if is_gemma:
        canvas = ctc.canvas_length(args.text, slack=0)
        shapes = Shapes(prompt=14 + 188, slots=188, canvas=canvas, text=args.text, recompute=args.recompute)
        operations = args.rows * (step_flops(text, shapes) + ear_flops(ears))
    else:
        with FlopCounterMode(display=False) as counter:
            step(0)
        operations = float(counter.get_total_flops())
    return statistics.median(times[2:]), operations, sum(p.numel() for p in parameters)


def main() -> None:
    """Measure and print."""
    args = parse()
    device = torch.device(args.device)
    seconds, operations, trained = measure(args, device)
    is_cuda = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2**30 if is_cuda else _process_gib()
    where = torch.cuda.get_device_name() if is_cuda else f"CPU, {torch.get_num_threads()} threads"
    speed = operations / seconds / 1e12
    print(f"{args.model} on {where}, torch {torch.__version__}; {args.rows} rows of {args.seconds:g} s")
    print(f"  trained parameters   {trained:,}")
    print(f"  step                 {seconds:.3f} s (median of {args.steps})")
    print(f"  tokens a second      {args.rows * args.text / seconds:,.0f}")
    print(f"  audio a second       {args.rows * args.seconds / seconds:,.1f} s")
    print(f"  peak memory          {memory:.2f} GiB of the {'device' if is_cuda else 'process'}")
    print(f"  operations a step    {operations / 1e12:.3f} TFLOP, {speed:.2f} TFLOP/s")
    if args.peak:
        print(f"  utilisation          {speed / args.peak:.1%} of {args.peak:g} TFLOP/s")


def _process_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
