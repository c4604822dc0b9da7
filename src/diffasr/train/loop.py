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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from diffasr.errors import RecipeError
from diffasr.evaluate.store import Decoder, score_store
from diffasr.model import checkpoint
from diffasr.model.loaded import Model
from diffasr.train.ahead import Dealt, made
from diffasr.train.augment import Augment
from diffasr.train.buckets import Buckets
from diffasr.train.data import FeatureStore, Item, deal, deal_buckets, read_items
from diffasr.train.distributed import Step, Team, load_state, recompute_, save_state, spread_
from diffasr.train.lora import add_lora, merge_lora
from diffasr.train.optimiser import Optimiser
from diffasr.train.recordings import Recordings, joined
from diffasr.train.stages import Recipe, Stage
from diffasr.train.start import start
from diffasr.train.step import losses
from diffasr.train.vocabulary import resting_rows

MAX_TOKENS = 160
"""Longest text that is trained on."""


@dataclass
class Place:
    """How far a run is."""

    stage: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0
    spent: float = 0.0
    """Seconds that the stage has taken so far."""

    def progress(self, stage: Stage) -> float:
        """How much of the stage is done, by steps or by the clock, whichever is further."""
        by_clock = self.spent / (60 * stage.minutes) if stage.minutes else 0.0
        return max(self.step / stage.steps, by_clock)


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
    team = Team()
    torch.backends.cuda.enable_cudnn_sdp(
        False
    )  # it plans a tenth of a second for every new shape, of which there are many
    first = torch.device("cpu") if recipe.spread else team.device  # no card need ever hold what is to be spread
    model = start(recipe.init, device=first, precision=recipe.precision, seed=recipe.seed)
    network = model.module
    if recipe.spread:
        spread_(network)
        network.to(team.device)
    if recipe.recompute:
        recompute_(network)
    items = _items(recipe, model)
    teacher = None
    if recipe.teacher is not None:
        teacher = checkpoint.load(recipe.teacher, device=str(team.device), precision="float32").module
    dev = FeatureStore(recipe.dev) if recipe.dev.is_dir() else _recordings(recipe.dev, Augment(), model)
    count = min(recipe.evaluate_count, len(dev.utterances))
    looks = [number * len(dev.utterances) // count for number in range(count)]
    if overfit:
        items, dev = items[:overfit], items[0].store
        looks = [item.number for item in items if item.store is dev]
    shares = None if overfit else recipe.shares
    saved = load_state(out / "state.pt")
    place = Place(**saved["place"]) if saved else Place()
    if saved is not None and saved["optimiser"] is None:  # it stopped between two stages, or after the last
        network.load_state_dict(saved["network"], strict=False)
        saved = None
    done = 0
    log = out / "log.jsonl"
    board = _board(out) if team.is_first else None

    for number, stage in enumerate(recipe.stages):
        if number < place.stage:
            continue
        optimiser = _prepare(network, stage, recipe.seed)
        parameters = optimiser.parameters
        average = [p.detach().clone() for p in parameters]
        if saved is not None:
            network.load_state_dict(saved["network"], strict=False)
            optimiser.load_state_dict(saved["optimiser"])
            average, saved = [value.to(team.device) for value in saved["average"]], None
        resting = resting_rows(model.tokenizer, stage.scripts).to(team.device) if stage.scripts else None
        step = team.wrap(Step(network, partial(losses, stage=stage, tokenizer=model.tokenizer, teacher=teacher)))
        mine = team.share(stage.batches)
        plan = _plan(items, recipe, stage, (place.epoch, place.batch), shares, mine)
        batches = made(plan, items, end=model.tokenizer.end, recipe=recipe)
        columns = (
            TextColumn(stage.name),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, speed_estimate_period=300, disable=not team.is_first) as bar:
            task = bar.add_task("", total=stage.steps, completed=place.step)
            counted = time.perf_counter()
            while place.progress(stage) < 1:
                started = time.perf_counter()
                rate = _set_rates(optimiser, stage, place)
                optimiser.zero_grad()
                told: dict[str, float] = {}
                rows, waited = 0, 0.0
                for turn in range(stage.batches):
                    asked = time.perf_counter()
                    dealt, batch = next(batches)
                    waited += time.perf_counter() - asked
                    place.epoch, place.batch = dealt.epoch, dealt.number
                    rows += len(dealt.rows)
                    if batch is None:
                        continue
                    generator = torch.Generator(team.device).manual_seed(
                        recipe.seed * 1_000_003 + number * 500_009 + place.step + turn * 7_368_787
                    )
                    with team.gathering(step, turn == mine[-1]):
                        with team.device, _rounding(team.device, recipe.autocast):
                            parts = step(team.on_device(batch), generator)
                        weighted = [getattr(stage, name) * value for name, value in parts.items()]
                        (torch.stack(weighted).sum() / len(mine)).backward()
                    for name, value in parts.items():
                        told[name] = told.get(name, 0.0) + float(value.detach()) / len(mine)
                spent, counted = place.spent + time.perf_counter() - counted, time.perf_counter()
                told = team.mean(told | {"stop": float(stop()), "spent": spent})
                if resting is not None:
                    still_(network, resting)
                norm = nn.utils.clip_grad_norm_(parameters, stage.clip)
                if not bool(norm.isfinite()):
                    raise RecipeError(f"{stage.name} step {place.step}: the gradient is {float(norm)}; lower the rate")
                optimiser.step()
                _average_(average, parameters, min(stage.ema, (1 + place.step) / (10 + place.step)))
                place.step, place.spent = place.step + 1, told.pop("spent")
                done += 1

                leaving = told.pop("stop") > 0 or done == stop_after
                entry: dict[str, Any] = {name: round(value, 4) for name, value in told.items()}
                entry |= {"norm": round(float(norm), 3), "rate": rate, "seconds": time.perf_counter() - started}
                entry |= {"waited": waited, "rows": rows}
                bar.update(task, advance=1, description=" ".join(f"{k} {v:.3f}" for k, v in told.items()))
                if place.step % recipe.evaluate_every == 0 or place.progress(stage) >= 1:
                    with _averaged(parameters, average):  # by all: reading spread weights takes all of them
                        entry |= _look(model, dev, looks, stage)
                if team.is_first:
                    _write(log, board, {"stage": stage.name, "step": place.step, "epoch": place.epoch} | entry)
                if leaving or place.step % recipe.save_every == 0:
                    save_state(out / "state.pt", _state(network, recipe, optimiser, average, place), team)
                if leaving:
                    print(f"stopped at {stage.name} step {place.step}; the same command goes on from there")
                    return out / "model"
        with torch.no_grad():
            for parameter, value in zip(parameters, average, strict=True):
                parameter.copy_(value)
        if model.config.backbone == "whisper":  # a gemma's LoRA is its checkpoint
            merge_lora(network)
        place.stage, place.step, place.spent = number + 1, 0, 0.0
        if team.is_first:
            checkpoint.save(out / stage.name, model)
        save_state(out / "state.pt", _state(network, recipe, None, [], place), team)
    if team.is_first:
        checkpoint.save(out / "model", model)
    team.wait()
    return out / "model"


def _items(recipe: Recipe, model: Model) -> list[Item]:
    """All that the recipe trains on."""
    wrong = {"whole": recipe.features, "padded": recipe.manifests}.get(model.config.encoder.mode)
    if wrong:
        raise RecipeError(
            f"{recipe.name}: a model whose encoder mode is {model.config.encoder.mode} can't train on {wrong[0]}: "
            "features are for natural and padded, manifests for natural and whole"
        )
    stores: list[FeatureStore | Recordings] = [FeatureStore(p) for p in recipe.features]
    stores += [_recordings(place, recipe.augment, model) for place in recipe.manifests]
    items = read_items(stores, model.tokenizer, max_tokens=MAX_TOKENS, strides=model.config.projector.strides)
    if not items:
        raise RecipeError(f"{recipe.name}: its features or manifests hold no utterance that fits")
    if recipe.manifests and recipe.augment.joined > 0:
        items += joined(
            items, model.tokenizer, share=recipe.augment.joined, seed=recipe.seed, max_tokens=MAX_TOKENS,
            strides=model.config.projector.strides,
        )  # fmt: skip
    return items


def _recordings(manifest: Path | str, augment: Augment, model: Model) -> Recordings:
    """Utterances as sound, in the mel bands and of the length that the model hears."""
    ears = model.config.encoder
    return Recordings(manifest, augment, mels=ears.mels, whole=ears.mode == "whole")


def _prepare(network: nn.Module, stage: Stage, seed: int) -> Optimiser:
    """Thaw what the stage trains."""
    network.requires_grad_(False)
    if "lora" in stage.rates:
        with torch.random.fork_rng(devices=[]):  # adapters start from torch's own dice
            torch.manual_seed(seed)
            add_lora(network, stage.lora_rank)
    parts = {}
    for part in sorted(stage.rates):
        chosen = [p for name, p in network.named_parameters() if part_of(name) == part]
        if part == "encoder":
            chosen = last_layers(network, stage.encoder_layers)
        for parameter in chosen:
            parameter.data = parameter.data.float()  # a step is too small for bfloat16 to see
            parameter.requires_grad_(True)
        parts[part] = chosen
    return Optimiser(parts, stage.rates, decay=stage.weight_decay, muon=stage.muon)


def still_(network: nn.Module, rows: Tensor) -> None:
    """No gradient for these rows of the embedding, (V,) bool."""
    for name, parameter in network.named_parameters():
        if part_of(name) == "embedding" and parameter.grad is not None:
            parameter.grad[rows] = 0


def last_layers(network: nn.Module, count: int) -> list[nn.Parameter]:
    """Parameters of the last ``count`` layers of the encoder, and of its last norm."""
    encoder = network.get_submodule("encoder")
    layers = list(encoder.get_submodule("layers").children())[-count:]
    return [p for module in (*layers, encoder.get_submodule("layer_norm")) for p in module.parameters()]


def part_of(name: str) -> str:
    """Which part of a recipe a parameter belongs to, by its name."""
    if "lora_" in name:
        return "lora"
    first, second = (*name.split("."), "")[:2]
    if first == "decoder":
        part = {"future": "conditioning", "embed_tokens": "embedding"}.get(second, second)
        return part if part in ("conditioning", "embedding") else "decoder"
    return first if first in ("encoder", "projector") else "frozen"


def _set_rates(optimiser: Optimiser, stage: Stage, place: Place) -> float:
    """Linear warm-up, then a cosine; returns the share of the peak."""
    if place.step < stage.warmup:
        share = (place.step + 1) / stage.warmup
    else:
        first = stage.warmup / stage.steps if place.progress(stage) == place.step / stage.steps else 0.0
        done = min(1.0, (place.progress(stage) - first) / (1 - first)) if first < 1 else 1.0
        share = stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * share
    return share


def _plan(
    items: list[Item],
    recipe: Recipe,
    stage: Stage,
    place: tuple[int, int],
    shares: dict[str, float] | None,
    mine: range,
) -> Iterator[Dealt]:
    """Batches from ``place`` (epoch, batches of it that are done) on, for ever."""
    numbers = {id(item): number for number, item in enumerate(items)}
    epoch, done = place
    turn = 0
    while True:
        if recipe.buckets:
            plan = Buckets(seconds=stage.seconds, count=recipe.buckets, together=stage.batches, seed=recipe.seed)
            batches = deal_buckets(items, plan, epoch=epoch, shares=shares)
        else:
            batches = deal(items, epoch=epoch, seed=recipe.seed, seconds=stage.seconds, shares=shares)
        for number in range(done, len(batches)):
            rows = tuple(numbers[id(item)] for item in batches[number])
            yield Dealt(epoch, number + 1, rows, turn % stage.batches in mine)
            turn += 1
        epoch, done = epoch + 1, 0


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


def _look(model: Model, dev: FeatureStore | Recordings, numbers: Sequence[int], stage: Stage) -> dict[str, float]:
    """Character error rates on some utterances of ``dev``."""
    writers: dict[Decoder, float] = {"ctc": 1.0, "diffusion": stage.diffusion, "ar": stage.ar * (stage.diffusion == 0)}
    out: dict[str, float] = {}
    for decoder in (decoder for decoder, weight in writers.items() if weight > 0):
        table = score_store(model, dev, numbers, decoder=decoder)
        out |= {f"cer_{decoder}_{language}": round(rate, 4) for language, rate in table.items()}
        out[f"cer_{decoder}"] = round(sum(table.values()) / len(table), 4)
    return out


def _state(
    network: nn.Module,
    recipe: Recipe,
    optimiser: Optimiser | None,
    average: Iterable[Tensor],
    place: Place,
) -> dict[str, Any]:
    """All that a run needs to go on; of the network only what some stage trains, or merges LoRA into."""
    parts = {part for stage in recipe.stages for part in stage.rates}
    parts |= {"decoder"} if "lora" in parts else set()
    return {
        "network": {name: value for name, value in network.state_dict().items() if part_of(name) in parts},
        "optimiser": optimiser.state_dict() if optimiser else None,
        "average": list(average),
        "place": vars(place),
    }


def _rounding(device: torch.device, is_on: bool) -> torch.autocast:
    """Products in bfloat16. Nothing cast is kept: before torch 2.12 a weight that was cast first without gradients, for
    self-conditioning, silently got none for the rest of the step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_on, cache_enabled=False)


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
