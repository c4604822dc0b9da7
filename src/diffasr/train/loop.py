"""The training loop: read top to bottom. Build, resume, then per step: batch, loss, backward, clip, step, log, save.

Everything random in a step comes from a generator seeded by (seed, stage, step), and the batches from (seed, epoch), so
that a run that was stopped and resumed equals one that was not.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from diffasr.errors import RecipeError
from diffasr.evaluate.store import Decoder, score_store
from diffasr.model import checkpoint
from diffasr.model.checkpoint import Model
from diffasr.train.data import FeatureStore, Item, collate, deal, read_items
from diffasr.train.lora import add_lora, merge_lora
from diffasr.train.stages import Recipe, Stage
from diffasr.train.step import losses


@dataclass
class Place:
    """How far a run is."""

    stage: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0


def train(recipe: Recipe, out: Path, *, overfit: int = 0, stop_after: int | None = None) -> Path:
    """Run every stage of ``recipe``; returns the folder of the trained checkpoint, ``out``/model.

    overfit: train on the first so many utterances only, and score on them. stop_after: save and leave after so many
    steps. A run in ``out`` that was stopped goes on where it stopped; SIGTERM and Ctrl-C save first.
    """
    with _stop_signals() as stop:
        return _train(recipe, out, overfit, stop_after, stop)


def _train(recipe: Recipe, out: Path, overfit: int, stop_after: int | None, stop: Callable[[], bool]) -> Path:
    """The loop itself."""
    out.mkdir(parents=True, exist_ok=True)
    model = checkpoint.load(recipe.init)
    network = model.network
    items = read_items((FeatureStore(p) for p in recipe.features), model.tokenizer, max_tokens=160)
    if not items:
        raise RecipeError(f"{recipe.name}: the feature stores hold no utterance that fits")
    dev = FeatureStore(recipe.dev)
    looks: Sequence[int] = range(0, len(dev.utterances), max(1, len(dev.utterances) // recipe.evaluate_count))
    if overfit:
        items, dev = items[:overfit], items[0].store
        looks = [item.number for item in items if item.store is dev]
    shares = None if overfit else recipe.shares
    place, saved = _resume(out / "state.pt")
    if saved is not None and saved["optimiser"] is None:  # it stopped between two stages, or after the last
        network.load_state_dict(saved["network"])
        saved = None
    done = 0
    log = out / "log.jsonl"
    board = _board(out)

    for number, stage in enumerate(recipe.stages):
        if number < place.stage:
            continue
        parameters, optimiser = _prepare(network, stage, recipe.seed)
        average = [p.detach().clone() for p in parameters]
        if saved is not None:
            network.load_state_dict(saved["network"])
            optimiser.load_state_dict(saved["optimiser"])
            average, saved = saved["average"], None
        batches = _batches(items, recipe, place, shares)
        columns = (
            TextColumn(stage.name),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, speed_estimate_period=300) as bar:
            task = bar.add_task("", total=stage.steps, completed=place.step)
            while place.step < stage.steps:
                started = time.perf_counter()
                batch = collate(next(batches), end=model.tokenizer.end)
                rate = _set_rates(optimiser, stage, place.step)
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number * 500_009 + place.step)
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                    parts = losses(network, batch, stage, tokenizer=model.tokenizer, generator=generator)
                weighted = [getattr(stage, name) * value for name, value in parts.items()]
                total = torch.stack(weighted).sum()
                optimiser.zero_grad(set_to_none=True)
                total.backward()
                norm = nn.utils.clip_grad_norm_(parameters, stage.clip)
                if not bool(norm.isfinite()):
                    raise RecipeError(f"{stage.name} step {place.step}: the gradient is {float(norm)}; lower the rate")
                optimiser.step()
                _average_(average, parameters, min(stage.ema, (1 + place.step) / (10 + place.step)))
                place.step += 1
                done += 1

                entry: dict[str, Any] = {name: round(float(value.detach()), 4) for name, value in parts.items()}
                entry |= {"norm": round(float(norm), 3), "rate": rate, "seconds": time.perf_counter() - started}
                entry |= {"rows": len(batch.tokens)}
                bar.update(
                    task, advance=1, description=" ".join(f"{k} {float(v.detach()):.3f}" for k, v in parts.items())
                )
                if place.step % recipe.evaluate_every == 0 or place.step == stage.steps:
                    with _averaged(parameters, average):
                        entry |= _look(model, dev, looks, stage)
                _write(log, board, {"stage": stage.name, "step": place.step, "epoch": place.epoch} | entry)
                leaving = stop() or done == stop_after
                if leaving or place.step % recipe.save_every == 0:
                    _save(out / "state.pt", network, optimiser, average, place)
                if leaving:
                    print(f"stopped at {stage.name} step {place.step}; the same command goes on from there")
                    return out / "model"
        with torch.no_grad():
            for parameter, value in zip(parameters, average, strict=True):
                parameter.copy_(value)
        merge_lora(network)
        place.stage, place.step = number + 1, 0
        checkpoint.save(out / stage.name, model)
        _save(out / "state.pt", network, None, [], place)
    checkpoint.save(out / "model", model)
    return out / "model"


def _prepare(network: nn.Module, stage: Stage, seed: int) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
    """Thaw what the stage trains; one optimiser group a part, in the order of the parts' names."""
    network.requires_grad_(False)
    if "lora" in stage.rates:
        with torch.random.fork_rng(devices=[]):  # adapters start from torch's own dice
            torch.manual_seed(seed)
            add_lora(network, stage.lora_rank)
    groups = []
    for part, rate in sorted(stage.rates.items()):
        chosen = [p for name, p in network.named_parameters() if part_of(name) == part]
        for parameter in chosen:
            parameter.requires_grad_(True)
        groups.append({"params": chosen, "peak": rate, "lr": rate})
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=stage.weight_decay, fused=True)
    return [p for g in optimiser.param_groups for p in g["params"]], optimiser


def part_of(name: str) -> str:
    """Which part of a recipe a parameter belongs to, by its name; the encoder belongs to none."""
    if "lora_" in name:
        return "lora"
    match name.split("."):
        case ["projector", *_]:
            return "projector"
        case ["decoder", "conditioning" | "future", *_]:
            return "conditioning"
        case ["decoder", "embed_tokens", *_]:
            return "embedding"
        case ["decoder", *_]:
            return "decoder"
    return "frozen"


def _set_rates(optimiser: torch.optim.AdamW, stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine; returns the share of the peak."""
    if step < stage.warmup:
        share = (step + 1) / stage.warmup
    else:
        done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
        share = stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * share
    return share


def _batches(items: list[Item], recipe: Recipe, place: Place, shares: dict[str, float] | None) -> Iterator[list[Item]]:
    """Batches from ``place`` on, for ever; ``place`` moves along."""
    while True:
        seconds = recipe.stages[place.stage].seconds
        dealt = deal(items, epoch=place.epoch, seed=recipe.seed, seconds=seconds, shares=shares)
        while place.batch < len(dealt):
            place.batch += 1
            yield dealt[place.batch - 1]
        place.epoch, place.batch = place.epoch + 1, 0


@torch.no_grad()
def _average_(average: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)


class _averaged:
    """With the average weights in place of the trained ones."""

    def __init__(self, parameters: list[nn.Parameter], average: list[Tensor]) -> None:
        self.parameters, self.average = parameters, average

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, value in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def _look(model: Model, dev: FeatureStore, numbers: Sequence[int], stage: Stage) -> dict[str, float]:
    """Character error rates on some utterances of ``dev``."""
    decoders: tuple[Decoder, ...] = ("ctc", "diffusion") if stage.diffusion > 0 else ("ctc",)
    out: dict[str, float] = {}
    for decoder in decoders:
        table = score_store(model, dev, numbers, decoder=decoder)
        out |= {f"cer_{decoder}_{language}": round(rate, 4) for language, rate in table.items()}
        out[f"cer_{decoder}"] = round(sum(table.values()) / len(table), 4)
    return out


def _save(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer | None, average: Iterable[Tensor], place: Place
) -> None:
    state = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict() if optimiser else None,
        "average": list(average),
        "place": vars(place),
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _resume(path: Path) -> tuple[Place, dict[str, Any] | None]:
    if not path.is_file():
        return Place(), None
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    return Place(**saved["place"]), saved


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or Ctrl-C came. A second Ctrl-C interrupts at once."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _board(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))


def _write(log: Path, board: Any, entry: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    if board is not None:
        for name, value in entry.items():
            if isinstance(value, float):
                board.add_scalar(f"{entry['stage']}/{name}", value, entry["step"])
