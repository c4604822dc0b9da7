"""A network in, the same network with a watch on it out: seconds and calls of each stage of a decode.

The proxy stands where the network stood, so that what is timed is the code that users run.
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from diffasr.decodable import Decodable, Floats, Heard
from diffasr.places import Place, Reader


@dataclass(frozen=True, kw_only=True)
class Times:
    """What some decoding cost."""

    seconds: dict[str, float]
    """By stage: features, encoder, prefill, denoise, ahead, ctc, ar, and text for what is left (sampler, tokenizer)."""
    calls: dict[str, int]
    """Network calls by stage; of ``denoise`` these are the steps that were run."""


class Clock:
    """Passes every call on to a network, adds up what it took, and remembers the languages of the last prefill."""

    hands = 1
    """One call at a time, or their times would count twice."""

    def __init__(self, network: Decodable) -> None:
        self._network = network
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self.languages: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def listen(self, features: Sequence[Floats], real: Sequence[int] | None = None) -> Any:
        """See Decodable; counted as encoder."""
        with self._call("encoder"):
            return self._network.listen(features, real)

    def prefill(self, speech: Any, languages: Sequence[int] | None) -> Heard:
        """See Decodable."""
        with self._call("prefill"):
            cache: Heard = self._network.prefill(speech, languages)
        self.languages = cache.languages.tolist()
        return cache

    def denoise(self, *canvas: Any, **known: Any) -> Any:
        """See Decodable."""
        with self._call("denoise"):
            return self._network.denoise(*canvas, **known)

    def reader(self, *known: Any, **more: Any) -> "_Timed":
        """See Decodable; each call of its ``read`` counted as denoise, of ``ahead`` as ahead."""
        return _Timed(self._network.reader(*known, **more), self._call)

    def ctc_rows(self, speech: Any) -> list[Floats]:
        """See Decodable; counted as ctc."""
        with self._call("ctc"):
            return self._network.ctc_rows(speech)

    def ar_reader(self, cache: Any) -> Callable[[Sequence[Sequence[int]]], list[Place]]:
        """See Decodable; each call of the reader counted as ar."""
        plain = self._network.ar_reader(cache)

        def read(texts: Sequence[Sequence[int]]) -> list[Place]:
            with self._call("ar"):
                return plain(texts)

        return read

    @contextmanager
    def rest(self, stage: str) -> Iterator[None]:
        """Count as ``stage`` what happens inside and is not a network call."""
        before, start = sum(self._seconds.values()), time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start - (sum(self._seconds.values()) - before)

    def take(self) -> Times:
        """What was counted since the last time, and start again from nothing."""
        times = Times(seconds=dict(self._seconds), calls=dict(self._calls))
        self._seconds.clear()
        self._calls.clear()
        return times

    @contextmanager
    def _call(self, stage: str) -> Iterator[None]:
        _wait()
        start = time.perf_counter()
        yield
        _wait()
        self._seconds[stage] += time.perf_counter() - start
        self._calls[stage] += 1


def _wait() -> None:
    """An accelerator works on after a call has returned; the clock must not run ahead of it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


class _Timed:
    def __init__(self, reader: Reader, call: Callable[[str], AbstractContextManager[None]]) -> None:
        self._reader, self._call = reader, call

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        with self._call("denoise"):
            return self._reader.read(texts)

    @property
    def looks_ahead(self) -> bool:
        return self._reader.looks_ahead

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        with self._call("ahead"):
            return self._reader.ahead(row, place, tokens)
