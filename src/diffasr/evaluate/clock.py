"""A network in, the same network with a watch on it out: seconds and calls of each stage of a decode.

The proxy stands where the network stood, so that what is timed is the code that users run.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from diffasr.model.network import Cache, Network, Speech
from diffasr.model.reread import Rereader
from diffasr.model.whisper import WhisperNetwork


@dataclass(frozen=True, kw_only=True)
class Times:
    """What some decoding cost."""

    seconds: dict[str, float]
    """By stage: features, encoder, prefill, denoise, draft, ctc, ar, and text for what is left (sampler, tokenizer)."""
    calls: dict[str, int]
    """Network calls by stage; of ``denoise`` these are the steps that were run."""


class Clock:
    """Passes every call on to a network, adds up what it took, and remembers the languages of the last prefill."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self.languages: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def as_network(self) -> WhisperNetwork:
        """Itself, for whoever asks for the class that it stands in for."""
        return cast(WhisperNetwork, self)

    def hear(self, mel: Tensor, lengths: Tensor) -> Speech:
        """See Network; counted as encoder."""
        with self._call("encoder", mel):
            return self._network.hear(mel, lengths)

    def prefill(self, speech: Speech, languages: Tensor | None) -> Cache:
        """See Network."""
        with self._call("prefill", speech.frames):
            cache = self._network.prefill(speech, languages)
        self.languages = cache.languages.tolist()
        return cache

    def denoise(self, canvas: Tensor, cache: Cache, **known: Any) -> Tensor:
        """See Network."""
        with self._call("denoise", canvas):
            return self._network.denoise(canvas, cache, **known)

    def rereader(self, cache: Cache, deaf: Cache | None = None) -> Any:
        """See Network; each call of its ``read`` counted as denoise, of ``ahead`` as draft."""
        plain = self._network.rereader(cache, deaf)
        return None if plain is None else _Timed(plain, partial(self._call, like=cache.audio))

    def ctc_logits(self, speech: Speech, labels: Tensor | None = None) -> Tensor:
        """See Network; counted as ctc."""
        with self._call("ctc", speech.frames):
            return self._network.ctc_logits(speech, labels)

    def ar_reader(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """See Network; each call of the reader counted as ar."""
        plain = self._network.ar_reader(cache)

        def read(tokens: Tensor) -> Tensor:
            with self._call("ar", tokens):
                return plain(tokens)

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
    def _call(self, stage: str, like: Tensor) -> Iterator[None]:
        _wait(like.device)
        start = time.perf_counter()
        yield
        _wait(like.device)
        self._seconds[stage] += time.perf_counter() - start
        self._calls[stage] += 1


class _Timed:
    def __init__(self, reader: Rereader, call: Callable[[str], AbstractContextManager[None]]) -> None:
        self._reader, self._call = reader, call

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[tuple[int, Tensor]]:
        with self._call("denoise"):
            return self._reader.read(texts)

    @property
    def drafts(self) -> bool:
        return self._reader.drafts

    def ahead(self, rows: Sequence[int], place: int, tokens: Sequence[int]) -> Tensor:
        with self._call("draft"):
            return self._reader.ahead(rows, place, tokens)


def _wait(device: torch.device) -> None:
    """An accelerator works on after a call has returned; the clock must not run ahead of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
