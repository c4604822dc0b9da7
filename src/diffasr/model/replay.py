"""Work on a GPU recorded once as a CUDA graph, then replayed on other numbers of the same shapes.

At a small batch a pass through a large model waits for Python, which starts some thousand kernels one by one; a graph
is started at once. What is recorded must not ask the device for a number, nor copy from the host.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

PLACES = 2048
"""Rows by places that are recorded at most: with more of them the device takes longer than Python."""
TAPES = 24
"""Graphs that are kept at most; the one that was not used for longest goes."""
ROOM = 4 << 30
"""Bytes that must be free before one is recorded, at that time and when most was in use so far."""

Run = Callable[[Sequence[Tensor], Sequence[Tensor | None]], list[Tensor]]
"""What is recorded: of tensors that are held for several calls, and those given anew for each, their first dimension
always the rows, to tensors of as many rows."""
Recording = tuple[Callable[[], None], list[Tensor]]
"""A replay, and where it leaves what it computes."""


class Recorder(Protocol):
    """Records work that reads and writes the same memory each time."""

    def __call__(self, work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
        """Raises RuntimeError where ``work`` can't be recorded."""


class GraphRecorder:
    """Records CUDA graphs that share the memory between their inputs and their results."""

    def __init__(self, mode: str = "thread_local") -> None:
        """mode: what CUDA refuses while it records, see ``torch.cuda.graph``."""
        self.mode = mode
        self._side: tuple[Any, Any] | None = None

    def __call__(self, work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
        """See Recorder."""
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
            free, whole = torch.cuda.mem_get_info()
            free = min(free, whole - torch.cuda.max_memory_allocated())
            if free < ROOM:
                raise RuntimeError(f"of the GPU's memory {free / 1e9:.1f} GB stay free, {ROOM / 1e9:.1f} are wanted")
            stream, pool = self._side = self._side or (torch.cuda.Stream(), torch.cuda.graph_pool_handle())
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=self.mode):
                    results = work()
            except BaseException:  # torch leaves its stream and its allocator as they were while it recorded
                torch.cuda.set_stream(before)
                with suppress(RuntimeError, AttributeError):
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                raise
        return graph.replay, results


class _Shelf:
    """Room for what is held, and whose it is now."""

    def __init__(self, size: int, held: Sequence[Tensor]) -> None:
        self.tensors = [_room(value, size) for value in held]
        self._owner: weakref.ref[object] | None = None

    def fill_(self, owner: object, held: Sequence[Tensor]) -> None:
        if self._owner is None or self._owner() is not owner:
            for room, value in zip(self.tensors, held, strict=True):
                room[: len(value)].copy_(value)
            self._owner = weakref.ref(owner)


class _Tape:
    """A recording, with the memory that it reads and writes."""

    def __init__(self, shelf: _Shelf, given: list[Tensor | None], recording: Recording) -> None:
        self.shelf, self.given = shelf, given
        self.replay, self.results = recording


class Replays:
    """Runs what it is given; shapes that come again are recorded, and replayed from then on.

    The rows of a batch are filled up to a power of two, so that few shapes come. Results are the caller's own.
    """

    def __init__(self, new: Callable[[], Recorder] = GraphRecorder, device_type: str = "cuda") -> None:
        """new: makes a recorder. device_type: where it can record."""
        self.places = PLACES
        self.is_on = True
        """False after a failure, of which one warning tells."""
        self._new, self._device_type = new, device_type
        self._lock = Lock()
        self._weights: tuple[int, ...] | None = None
        self._asked: weakref.ref[object] | None = None
        self.forget()

    def __reduce__(self) -> tuple[type["Replays"], tuple[object, ...]]:
        """A copy has recorded nothing: it is another network's."""
        return Replays, (self._new, self._device_type)

    def forget(self) -> None:
        """Let all recordings go, with their memory."""
        self._record = self._new()
        self._tapes: dict[object, _Tape] = {}
        self._shelves: weakref.WeakValueDictionary[object, _Shelf] = weakref.WeakValueDictionary()
        self._seen: set[object] = set()

    def serves(self, owner: object, network: nn.Module) -> bool:
        """Whether work that reads the weights of ``network`` can be recorded, as they are while ``owner`` is the same.

        They must be frozen, in plain tensors, and all on one device. Where they have moved, all is forgotten.
        """
        if not (self.is_on and torch.is_inference_mode_enabled()):
            return False
        with self._lock:
            if self._asked is None or self._asked() is not owner:
                self._asked = weakref.ref(owner)
                weights = _addresses(network, self._device_type)
                if weights != self._weights:
                    self.forget()
                    self._weights = weights
            return self._weights is not None

    def __call__(
        self, run: Run, owner: object, held: Sequence[Tensor], given: tuple[Tensor, *tuple[Tensor | None, ...]]
    ) -> list[Tensor]:
        """What ``run(held, given)`` gives. The numbers in ``held`` are the same as long as their ``owner`` is.

        The first of ``given`` is (B, L) or (B, L, …). A shape is run as it is when it comes for the first time.
        """
        rows = len(given[0])
        size = 1 << (rows - 1).bit_length()
        if not self.is_on or size * given[0].shape[1] > self.places:
            return run(held, given)
        key = (size, _shapes(held), _shapes(given))
        with self._lock:
            tape = self._tapes.pop(key, None)
            if tape is None and key in self._seen:
                tape = self._recorded(run, size, held, given)
            self._seen.add(key)
            if tape is not None:
                self._tapes[key] = tape  # behind the others
                for oldest in list(self._tapes)[:-TAPES]:
                    del self._tapes[oldest]
                tape.shelf.fill_(owner, held)
                for room, value in zip(tape.given, given, strict=True):
                    if room is not None and value is not None:
                        room[:rows].copy_(value)
                tape.replay()
                return [result[:rows].clone() for result in tape.results]
        return run(held, given)

    def _recorded(
        self, run: Run, size: int, held: Sequence[Tensor], given: tuple[Tensor, *tuple[Tensor | None, ...]]
    ) -> _Tape | None:
        """A recording for ``size`` rows; None, and no more of them, where it can't be had."""
        place = (size, _shapes(held))
        shelf = self._shelves.get(place)
        if shelf is None:
            shelf = self._shelves[place] = _Shelf(size, held)
        mine = [None if value is None else _room(value, size) for value in given]
        try:
            if len(given[0]) < size:  # a kernel for so many rows may never have been loaded
                run(shelf.tensors, mine)
            return _Tape(shelf, mine, self._record(lambda: run(shelf.tensors, mine), given[0].device))
        except RuntimeError as error:  # of CUDA, of the allocator or of a kernel
            self.forget()
            self.is_on = False
            warnings.warn(
                f"no CUDA graph can be recorded, so small batches stay slow: {first_cause(error)}", stacklevel=3
            )
            return None


def first_cause(error: BaseException) -> str:
    """The error that came first of those that led to ``error``, and the line that it came from."""
    while error.__context__ is not None:
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {frames[-1].filename} line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    told = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {told[0]}{where}"


def _room(value: Tensor, size: int) -> Tensor:
    """A copy with ``size`` rows: those of ``value`` over and over."""
    return value[torch.arange(size, device=value.device) % len(value)].contiguous()


def _shapes(values: Sequence[Tensor | None]) -> tuple[object, ...]:
    """What must be the same of all but the rows."""
    return tuple(None if value is None else (value.shape[1:], value.dtype, value.device) for value in values)


def _addresses(network: nn.Module, device_type: str) -> tuple[int, ...] | None:
    """Where the weights are; None where they can't be read by what was recorded."""
    weights = list(network.parameters())
    plain = all(type(value) in (Tensor, nn.Parameter) and not value.requires_grad for value in weights)
    devices = {value.device for value in weights}
    if not plain or len(devices) != 1 or devices.pop().type != device_type:
        return None
    return tuple(value.data_ptr() for value in weights)
