"""The CTC unlock on a small DiffusionGemma: text and spoken digits in, two learning curves out.

``run.py prepare | pretrain | with_ctc | without_ctc | plot``, in this order, from the repository; see README.md.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from prepare import CODES, DATA, RECIPE, ROOT, TRAIN, WORK, digit_words, make_features, make_tokenizer, text_lines
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion

from diffasr.diffusion.batched import best_paths
from diffasr.diffusion.corrupt import corrupt, draw_times
from diffasr.diffusion.loss import ar_loss, ctc_loss, diffusion_loss
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.sampler import sample
from diffasr.evaluate.score import character_counts
from diffasr.model.gemma import GemmaNetwork, Prompt, add_lora, build_backbone
from diffasr.model.network import Cache, Speech
from diffasr.model.projector import Projector
from diffasr.text import Tokenizer


class Reader(nn.Module):
    """Stands where the projector will: its "frames" are token ids, its audio tokens their embeddings."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def slots(self, frames: Tensor) -> Tensor:
        """One a token."""
        return frames

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, 1) ids to (B, T, D)."""
        embedded: Tensor = self.embed(frames[..., 0].long())
        return embedded


def log(file: str, **fields: Any) -> None:
    """Write one JSON line to a log and to the screen."""
    line = json.dumps(fields)
    print(line, flush=True)
    with (WORK / file).open("a", encoding="utf-8") as out:
        out.write(line + "\n")


def new_backbone(tokenizer: Tokenizer, canvas: int) -> DiffusionGemmaForBlockDiffusion:
    """The recipe's DiffusionGemma with random weights."""
    return build_backbone(RECIPE["backbone"] | {"vocab_size": tokenizer.size}, canvas)


def prompt_of(tokenizer: Tokenizer, task: int) -> Prompt:
    """Start token, the task, then audio."""
    languages = tuple(tokenizer.languages.values())
    return Prompt(before=(tokenizer.start, task), languages=languages, end=tokenizer.end)


def pad(rows: list[list[int]], size: int, value: int) -> Tensor:
    """Rows of ids as one (B, size) tensor."""
    return torch.tensor([row + [value] * (size - len(row)) for row in rows])


def train_step(network: GemmaNetwork, cache: Cache, texts: list[list[int]], canvas: int, noise: torch.Generator
               ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Diffusion and autoregressive losses of a batch of texts under their prompts, both (B,)."""
    vocabulary = network.backbone.config.text_config.vocab_size
    clean = pad(texts, canvas, network.end)
    full = torch.full((len(texts),), canvas)
    t = draw_times(len(texts), full_share=TRAIN["full_share"], generator=noise)
    noisy, _ = corrupt(clean, t, vocabulary=vocabulary, generator=noise)
    previous = None
    if torch.rand(1, generator=noise).item() < TRAIN["self_conditioning"]:
        with torch.no_grad():
            previous = network.denoise(noisy, cache, lengths=full)
    logits = network.denoise(noisy, cache, lengths=full, previous=previous)
    lengths = torch.tensor([len(text) + 1 for text in texts])
    written = clean[:, : int(lengths.max())]
    return diffusion_loss(logits, clean, full), ar_loss(network.ar_logits(written[:, :-1], cache), written, lengths)


def optimise(modules: nn.Module, steps: int, rate: float) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Hand out step numbers; the caller leaves gradients, this clips and applies them, with warm-up and cosine."""
    weights = [p for p in modules.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(1, steps + 1):
        factor = min(step / TRAIN["warmup"], 0.55 + 0.45 * float(np.cos(np.pi * step / steps)))
        optimiser.param_groups[0]["lr"] = rate * factor
        yield step, optimiser
        nn.utils.clip_grad_norm_(weights, TRAIN["clip"])
        optimiser.step()
        optimiser.zero_grad()


def pretrain() -> None:
    """Stage 1: a small text-diffusion model that can go on from its prompt, or write it again."""
    options, tokenizer = RECIPE["pretrain"], Tokenizer.load(WORK / "tokenizer.json")
    backbone = new_backbone(tokenizer, options["canvas"])
    reader, ear = Reader(backbone.model.decoder.embed_tokens), nn.Identity()
    tasks = {task: GemmaNetwork(ear, reader, backbone, prompt_of(tokenizer, getattr(tokenizer, token)))
             for task, token in (("repeat", "task"), ("continue", "plain"))}  # fmt: skip
    print(f"{sum(p.numel() for p in backbone.parameters()):,} parameters", flush=True)
    pools = {code: [ids for ids in map(tokenizer.encode, text_lines(code)) if 4 <= len(ids) < options["canvas"]]
             for code in DATA["text_lines"]}  # fmt: skip
    dice, noise = random.Random(TRAIN["seed"]), torch.Generator().manual_seed(TRAIN["seed"])
    started = time.process_time()
    for step, _ in optimise(backbone, options["steps"], options["rate"]):
        task = "repeat" if dice.random() < options["repeat_share"] else "continue"
        codes = dice.choices(list(pools), k=options["batch"])
        texts = [tokenizer.encode(" ".join(digit_words(dice))) if dice.random() < options["digit_share"]
                 else dice.choice(pools[code]) for code in codes]  # fmt: skip
        cut = [len(text) if task == "repeat" else len(text) // 2 for text in texts]
        read = [text[:size] for text, size in zip(texts, cut, strict=True)]
        ids = pad(read, max(cut), tokenizer.end)[..., None].float()
        cache = tasks[task].prefill(Speech(frames=ids, lengths=torch.tensor(cut)),
                                    torch.tensor([CODES.index(code) for code in codes]))  # fmt: skip
        write = texts if task == "repeat" else [t[size:] for t, size in zip(texts, cut, strict=True)]
        diffusion, causal = train_step(tasks[task], cache, write, options["canvas"], noise)
        (diffusion.mean() + causal.mean()).backward()
        if step % 25 == 0:
            log("pretrain.jsonl", step=step, task=task, diffusion=diffusion.mean().item(), ar=causal.mean().item(),
                cpu_seconds=time.process_time() - started)  # fmt: skip
    save_model(backbone, str(WORK / "backbone.safetensors"))


def load_speech(name: str) -> tuple[list[Tensor], list[str]]:
    """Frames and words that ``prepare`` wrote."""
    stored = load_file(WORK / f"{name}.safetensors")
    return [stored[key].float() for key in sorted(stored)], json.loads((WORK / f"{name}.json").read_text())


def batch_of(frames: list[Tensor]) -> Speech:
    """Frames of several strings, zero-padded."""
    padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return Speech(frames=padded, lengths=torch.tensor([len(f) for f in frames]))


@torch.no_grad()
def evaluate(network: GemmaNetwork, tokenizer: Tokenizer, *, decode: bool) -> dict[str, float]:
    """Dev scores. ``true`` and ``shuffled``: diffusion loss a text token under its own and a stranger's audio."""
    frames, words = load_speech("dev")
    texts = [tokenizer.encode(text) for text in words]
    lengths, size = torch.tensor([len(text) + 1 for text in texts]), RECIPE["speech"]["canvas"]
    full, clean = torch.full((len(texts),), size), pad(texts, size, tokenizer.end)
    english = torch.zeros(len(texts), dtype=torch.int64)
    scores: dict[str, float] = {}
    for kind, heard in (("shuffled", frames[1:] + frames[:1]), ("true", frames)):
        cache = network.prefill(batch_of(heard), english)
        for t in (0.5, 1.0):
            dice = torch.Generator().manual_seed(7)
            noisy, _ = corrupt(clean, torch.full((len(texts),), t), vocabulary=tokenizer.size, generator=dice)
            logits = network.denoise(noisy, cache, lengths=full)
            scores[f"{kind}_{t}"] = diffusion_loss(logits, clean, lengths).mean().item()
    scores["ctc"] = ctc_loss(cache.ctc, cache.slots, clean, lengths - 1, blank=network.end).mean().item()
    heard_ids = [path.tokens for path in best_paths(cache.ctc, cache.slots, blank=network.end)]
    scores["ctc_cer"] = error_rate(words, [tokenizer.decode(ids) for ids in heard_ids])
    if decode:
        options = SamplingOptions(steps=RECIPE["speech"]["sampler_steps"], start="noise")
        start = torch.randint(tokenizer.size, clean.shape, generator=torch.Generator().manual_seed(3))
        drafts = sample(lambda canvas, previous: network.denoise(canvas, cache, lengths=full, previous=previous),
                        start, full, options, vocabulary=tokenizer.size)  # fmt: skip
        *_, last = drafts
        scores["diffusion_cer"] = error_rate(words, [tokenizer.decode(row.tolist()) for row in last.tokens])
    return scores


def error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Characters: errors over reference length."""
    errors = sum(character_counts(r, h).errors for r, h in zip(references, hypotheses, strict=True))
    return errors / sum(map(len, references))


def train_speech(name: str, ctc_weight: float) -> None:
    """Stage 2: projector and LoRA learn to hear; the two runs differ in ``ctc_weight`` alone."""
    options, tokenizer = RECIPE["speech"], Tokenizer.load(WORK / "tokenizer.json")
    torch.manual_seed(TRAIN["seed"])
    backbone = new_backbone(tokenizer, options["canvas"])
    load_model(backbone, str(WORK / "backbone.safetensors"))
    add_lora(backbone, options["lora_rank"])
    frames, words = load_speech("train")
    projector = Projector(speech_width=frames[0].shape[1], hidden=options["projector_hidden"],
                          width=RECIPE["backbone"]["hidden_size"], strides=3)  # fmt: skip
    network = GemmaNetwork(nn.Identity(), projector, backbone, prompt_of(tokenizer, tokenizer.task))
    texts = [tokenizer.encode(text) for text in words]
    dice, noise = random.Random(TRAIN["seed"]), torch.Generator().manual_seed(TRAIN["seed"])
    english = torch.zeros(options["batch"], dtype=torch.int64)
    log(f"{name}.jsonl", step=0, cpu_seconds=0.0, **evaluate(network, tokenizer, decode=True))
    started = time.process_time()
    for step, _ in optimise(network, options["steps"], options["rate"]):
        rows = dice.sample(range(len(texts)), options["batch"])
        cache = network.prefill(batch_of([frames[row] for row in rows]), english)
        written = [texts[row] for row in rows]
        diffusion, causal = train_step(network, cache, written, options["canvas"], noise)
        labels, sizes = pad(written, options["canvas"], tokenizer.end), torch.tensor([len(w) for w in written])
        heard = ctc_loss(cache.ctc, cache.slots, labels, sizes, blank=network.end)
        (diffusion.mean() + causal.mean() + ctc_weight * heard.mean()).backward()
        if step % options["evaluate_every"] == 0:
            scores = evaluate(network, tokenizer, decode=step % options["sample_every"] == 0)
            log(f"{name}.jsonl", step=step, cpu_seconds=time.process_time() - started, train=diffusion.mean().item(),
                train_ar=causal.mean().item(), **scores)  # fmt: skip
    save_model(network, str(WORK / f"{name}.safetensors"))


def plot() -> None:
    """Both runs in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4), constrained_layout=True)
    for name, colour in (("with_ctc", "tab:blue"), ("without_ctc", "tab:red")):
        rows = [json.loads(line) for line in (WORK / f"{name}.jsonl").open()]
        steps, label = [row["step"] for row in rows], name.replace("_", " ").replace("ctc", "CTC")
        left.plot(steps, [row["true_1.0"] for row in rows], color=colour, label=f"{label}, own audio")
        left.plot(steps, [row["shuffled_1.0"] for row in rows], "--", color=colour, label=f"{label}, another's audio")
        middle.plot(steps[1:], [row["train_ar"] for row in rows[1:]], color=colour, label=label)
        right.plot(steps, [row["ctc"] for row in rows], color=colour, label=label)
    left.set(xlabel="step", ylabel="nats a text token", title="diffusion loss from pure noise, dev", ylim=(0, 5))
    middle.set(xlabel="step", ylabel="nats a token", title="autoregressive loss, one train batch", ylim=(0, None))
    right.set(xlabel="step", ylabel="nats a label", title="CTC loss, dev", yscale="log")
    for axes in (left, middle, right):
        axes.legend()
        axes.grid(alpha=0.3)
    target = ROOT / DATA["plot"]
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)


def main(step: str) -> None:
    """Run one step of the recipe."""
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(TRAIN["seed"])
    match step:
        case "prepare":
            make_tokenizer()
            make_features()
        case "pretrain":
            pretrain()
        case "with_ctc" | "without_ctc":
            train_speech(step, ctc_weight=1.0 if step == "with_ctc" else 0.0)
        case "plot":
            plot()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
