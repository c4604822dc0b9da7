"""Durations in, batches out: utterances of like length together, the same for the same seed, and resumed in the middle.

Utterances fall into buckets that hold the same seconds of audio each. A batch is of one bucket and has as many rows as
fit at the bucket's longest, so that shapes are few: a GPU that has seen each of them once plans nothing anew.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, TypeVar

from diffasr.errors import OptionError, RecipeError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """How batches are made."""

    seconds: float
    """Audio a batch, padding included; an utterance that is longer than that is a batch of its own."""
    count: int = 10
    """How many buckets. More waste less on padding, fewer mix better."""
    together: int = 1
    """So many batches in a row are of one bucket: those of one step, that no process waits for another."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.count < 1 or self.together < 1:
            raise OptionError(
                f"seconds must be above 0, count and together at least 1, got {self.seconds}, {self.count}, "
                f"{self.together}"
            )


class BucketSampler:
    """Batches of numbers of utterances, for ever; ``state_dict`` after any batch says what comes next."""

    def __init__(self, durations: Sequence[float], buckets: Buckets) -> None:
        if not durations or min(durations) <= 0:
            raise OptionError(f"utterances to deal are needed, each longer than 0 s; {len(durations)} were given")
        self.durations, self.buckets = durations, buckets
        self.epoch, self.batch = 0, 0
        self._held = edges(durations, buckets.count)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            dealt = self.dealt(self.epoch)
            while self.batch < len(dealt):
                self.batch += 1
                yield dealt[self.batch - 1]
            self.epoch, self.batch = self.epoch + 1, 0

    def dealt(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch: each utterance in one of them."""
        dice = random.Random(f"{self.buckets.seed}:{epoch}")
        groups: list[list[list[int]]] = []
        rest: list[list[int]] = []
        for bucket in self._held:
            mixed = dice.sample(bucket, len(bucket))
            rows = max(1, int(self.buckets.seconds / max(self.durations[n] for n in bucket)))
            batches = list(_runs(mixed, rows))
            whole = len(batches) - len(batches) % self.buckets.together
            groups += _runs(batches[:whole], self.buckets.together)
            rest += batches[whole:]
        groups += _runs(rest, self.buckets.together)  # neighbours in length
        short = groups.pop() if len(groups[-1]) < self.buckets.together else []
        dice.shuffle(groups)
        return [*chain.from_iterable(groups), *short]

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and what it must be built with to go on from there."""
        return {"epoch": self.epoch, "batch": self.batch, "utterances": len(self.durations), **asdict(self.buckets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises RecipeError when this sampler would deal other batches than the saved one."""
        own = self.state_dict() | {"epoch": state["epoch"], "batch": state["batch"]}
        changed = [f"{name} was {state[name]}, is {own[name]}" for name in own if state[name] != own[name]]
        if changed:
            raise RecipeError(f"the batches can't go on where they stopped: {'; '.join(changed)}")
        self.epoch, self.batch = state["epoch"], state["batch"]


def edges(durations: Sequence[float], count: int) -> list[list[int]]:
    """Numbers of the utterances in up to ``count`` buckets of like seconds in all, shortest first, none empty."""
    order = sorted(range(len(durations)), key=lambda n: (durations[n], n))
    total = sum(durations)
    held: list[list[int]] = [[] for _ in range(count)]
    before = 0.0
    for number in order:
        held[min(count - 1, int(count * before / total))].append(number)
        before += durations[number]
    return [bucket for bucket in held if bucket]


def _runs(values: Sequence[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(values), size):
        yield list(values[first : first + size])
