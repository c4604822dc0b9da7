"""One process or many: which batches of a step each takes, and how their gradients become one.

Under ``accelerate launch`` or torchrun every process holds the network, takes its share of the batches of a step, and
DistributedDataParallel makes the mean of the gradients. A step of n batches is the same step on 1, 2 or n processes.

What stays frozen has no gradient, and of a DiffusionGemma that is nearly all: ``spread_`` leaves each process a part of
it (FSDP2), gathered when it is read. What is trained, 42 M numbers of 26 B, is on every process.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffasr.errors import OptionError, RecipeError
from diffasr.model.network import Speech
from diffasr.train.data import Batch, Mel

RECOMPUTED = re.compile(r"(encoder|decoder)\.layers\.\d+|backbone\..*\.layers\.\d+\.(experts|mlp)")
"""Modules without a memory of their own, so that running them twice changes nothing."""
SPREAD = re.compile(r"backbone\.model\.encoder\.language_model\.layers\.(?P<layer>\d+)\.(?P<part>experts|mlp)")


class Step(nn.Module):
    """A network and its losses as one module, for DistributedDataParallel watches only what ``forward`` does."""

    def __init__(self, network: nn.Module, losses: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.network = network
        self.losses = losses

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of one batch, by name."""
        return self.losses(self.network, batch, generator=generator)


class Team:
    """The processes of a run: one, or as many as the launcher started."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as error:
            raise OptionError("training needs accelerate: pip install 'diffasr[train]'") from error
        # Not every step uses all that it trains: self-conditioning, for one, is in some of them only.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batches: int) -> range:
        """Which of a step's batches are this process's. Raises RecipeError where they can't be shared out evenly."""
        if batches % self.count:
            raise RecipeError(
                f"a step of {batches} batches can't be shared by {self.count} processes: set batches to a multiple "
                f"of {self.count}"
            )
        return range(self.rank, batches, self.count)

    def wrap(self, step: Step) -> nn.Module:
        """``step`` with gradients made common, of what is thawed now."""
        if self.count == 1:
            return step
        frozen = [name for name, p in step.named_parameters() if not p.requires_grad]
        buffers = [name for name, _ in step.named_buffers()]
        self._accelerator.free_memory()  # of the stage before
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(step, frozen + buffers)
        wrapped: nn.Module = self._accelerator.prepare_model(step, device_placement=False)
        return wrapped

    def gathering(self, step: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
        """Where a backward pass belongs: only that of the last batch exchanges gradients."""
        return nullcontext() if is_last else self._accelerator.no_sync(step)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value's mean over the processes, which all name the same ones."""
        if self.count == 1:
            return dict(values)
        told = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, self._accelerator.reduce(told, "mean").tolist(), strict=True))

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the network is."""
        sound, to = batch.speech, self.device
        if isinstance(sound, Speech):
            sound = Speech(frames=sound.frames.to(to), lengths=sound.lengths.to(to))
        else:
            sound = Mel(features=sound.features.to(to), lengths=sound.lengths.to(to))
        moved = {name: getattr(batch, name).to(to) for name in
                 ("languages", "tokens", "lengths", "pieces", "piece_lengths")}  # fmt: skip
        return replace(batch, speech=sound, **moved)


def recompute_(network: nn.Module) -> None:
    """Gradient checkpointing: layers forget what they computed and compute it again on the way back."""
    for module in _modules(network, RECOMPUTED):
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)


def spread_(network: nn.Module) -> None:
    """Leave each process its part of the language model's experts and MLPs, which are frozen.

    Both stacks read the same modules afterwards: their weights were shared, and are gathered under one name. Raises
    OptionError where there is nothing to spread, or one process alone.
    """
    from torch.distributed import is_initialized
    from torch.distributed.fsdp import fully_shard

    names = [name for name, _ in network.named_modules() if SPREAD.fullmatch(name)]
    if not names or not is_initialized():
        raise OptionError("spread is for a gemma backbone on several processes (accelerate launch); set it to false")
    for name in names:
        module = network.get_submodule(name)
        if any(p.requires_grad or not p.is_floating_point() for p in module.parameters()):
            raise OptionError(f"{name} is trained or quantised and can't be spread: set spread to false")
        network.set_submodule(name.replace("encoder.language_model", "decoder"), module)
        fully_shard(module)


def _modules(network: nn.Module, pattern: re.Pattern[str]) -> Iterator[nn.Module]:
    return (module for name, module in network.named_modules() if pattern.fullmatch(name))


def save_state(place: Path, state: dict[str, Any], team: Team) -> None:
    """Write ``state``, which all processes hold, to ``place``: one file, or a folder to which each wrote a part."""
    if team.count == 1:
        part = place.with_suffix(".part")
        torch.save(state, part)
        part.replace(place)
        shutil.rmtree(_folder(place), ignore_errors=True)
        return
    from torch.distributed.checkpoint.state_dict_saver import save

    folder, part = _folder(place), place.with_suffix(".parts")
    if team.is_first:
        shutil.rmtree(part, ignore_errors=True)
    team.wait()
    save(state, checkpoint_id=part)
    team.wait()
    if team.is_first:
        old = place.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        place.unlink(missing_ok=True)
    team.wait()


def load_state(place: Path) -> dict[str, Any] | None:
    """What ``save_state`` wrote, by however many processes; None where nothing is."""
    for folder in (_folder(place), place.with_suffix(".old")):  # the latter where a save was cut short
        if folder.exists() and not place.is_file():
            return _gathered(folder)
    if not place.is_file():
        return None
    saved: dict[str, Any] = torch.load(place, weights_only=True, map_location="cpu")
    return saved


def _folder(place: Path) -> Path:
    return place.with_suffix(".shards")


def _gathered(folder: Path) -> dict[str, Any]:
    """A sharded state in one piece, on the CPU."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.NamedTemporaryFile() as file:
        dcp_to_torch_save(folder, file.name)
        saved: dict[str, Any] = torch.load(file.name, weights_only=True, map_location="cpu")
    for optimiser in saved["optimiser"] or ():  # numbers have become words
        optimiser["state"] = {int(number): held for number, held in optimiser["state"].items()}
    return saved
