"""Batches made ahead by other processes: read, changed and stacked while the device computes. Their order stays.

Reading and changing two minutes of sound takes a core about a second; a GPU trains on an hour of it in that time.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from diffasr.errors import DiffasrError
from diffasr.train.data import Batch, Item, collate
from diffasr.train.stages import Recipe

AHEAD = 3
"""Batches that each process may be ahead."""
PATIENCE = 10
"""Seconds that such a process lives on after SIGTERM."""
MEL_FRAMES = 60
"""Sound of buckets is padded to a multiple of so many: of each shape that is new, a GPU plans its convolutions anew."""


@dataclass(frozen=True)
class Dealt:
    """One batch of an epoch, before anything of it is read."""

    epoch: int
    number: int
    """How many batches of the epoch there are up to this one."""
    rows: tuple[int, ...]
    """Places of its utterances in the list of all."""
    is_mine: bool
    """Whether this process, of several that train together, is the one that needs it."""


class _Desk:
    """Where a dealt batch is made, or the error that stands in its way: raised here, it would arrive in a traceback."""

    def __init__(self, items: Sequence[Item], end: int, recipe: Recipe) -> None:
        self.items, self.end, self.seed = items, end, recipe.seed
        self.multiple = MEL_FRAMES if recipe.buckets else 1

    def __getitem__(self, dealt: Dealt) -> tuple[Dealt, Batch | DiffasrError | None]:
        if not dealt.is_mine:
            return dealt, None
        chosen = [self.items[row] for row in dealt.rows]
        seed = (self.seed, dealt.epoch, dealt.number)
        try:
            return dealt, collate(chosen, end=self.end, seed=seed, multiple=self.multiple)
        except DiffasrError as error:
            return dealt, error


def made(
    plan: Iterator[Dealt], items: Sequence[Item], *, end: int, recipe: Recipe
) -> Iterator[tuple[Dealt, Batch | None]]:
    """The batches of ``plan`` in its order, those of other processes as None. ``recipe.workers`` processes make
    them, or this one when they are wanted."""
    workers = recipe.workers
    loader: DataLoader[tuple[Dealt, Batch | DiffasrError | None]] = DataLoader(
        cast("Dataset[tuple[Dealt, Batch | DiffasrError | None]]", _Desk(items, end, recipe)),
        sampler=plan,  # read once, so an iterator will do
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_let_go,
        multiprocessing_context="fork" if workers else None,  # the list of utterances is shared, not sent
        generator=torch.Generator(),  # or torch's own dice would be moved
    )
    for dealt, batch in loader:
        if isinstance(batch, DiffasrError):
            raise batch
        yield dealt, batch


def _as_it_is(sample: Any) -> Any:
    return sample


def _let_go(_: int) -> None:
    """Signals are for the process that trains: it saves, and its end ends the others. Who is told to stop with it, as
    all of a job are, goes on long enough for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(PATIENCE))
