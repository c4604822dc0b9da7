"""Recordings in, files (or outcomes) out: what is done already is left alone, the rest goes to the workers.

One job works in this process. Several are processes, each with a model of its own and its share of the threads: memory
grows with them, and so does speed where there are more cores than one recording can use. They transcribe and this
process writes, so that stopping it at any moment leaves whole files only.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from diffasr.batch.inputs import STDIN, Recording, check_places
from diffasr.batch.ledger import Ledger
from diffasr.batch.work import Outcome, Settings, Task, Worker
from diffasr.errors import OptionError
from diffasr.formats import write_text_atomically

if TYPE_CHECKING:
    from diffasr.transcribe import Watch

Report = Callable[[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is worked through."""

    folder: Path | None = None
    """Where transcripts are written; None: they are only reported."""
    jobs: int = 1
    """Worker processes."""
    threads: int | None = None
    """CPU threads of all jobs together. None: one a core."""
    redo_all: bool = False
    """Transcribe again what is unchanged, too."""
    watch: "Callable[[str], AbstractContextManager[Watch]] | None" = None
    """For a recording, what is called after each step of it; with one job only."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise OptionError(f"jobs must be at least 1, got {self.jobs}")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads must be at least 1, got {self.threads}")
        if self.watch is not None and self.jobs > 1:
            raise OptionError(f"one recording at a time can be watched, not {self.jobs}: leave out --jobs or --watch")


def transcribe_all(
    recordings: Sequence[Recording], settings: Settings, options: BatchOptions, report: Report, stdin: bytes = b""
) -> Counter[str]:
    """Transcribe what is not done yet, and report each recording as soon as its files are whole.

    Without a folder the reports come in the order of ``recordings``. stdin: what ``-`` holds. Returns how many are
    done, unchanged and failed. Raises OptionError, ModelError or DownloadError for what concerns all of them.
    """
    ledger = None
    if options.folder is not None:
        check_places(recordings)
        ledger = Ledger(options.folder)
    jobs = min(options.jobs, max(1, len(recordings)))
    worker = Worker(
        settings=settings,
        basis=None if ledger is None else settings.basis(),
        threads=_share(options.threads, jobs),
    )
    tasks = [
        Task(
            recording=recording,
            known=None if ledger is None or options.redo_all else ledger.known(recording, settings.formats),
            data=stdin if recording.source == STDIN else None,
        )
        for recording in recordings
    ]
    tally: Counter[str] = Counter()

    def take(outcome: Outcome) -> None:
        kept = outcome if ledger is None else _keep(outcome, ledger)
        tally[kept.state] += 1
        report(kept)

    if jobs == 1:
        with _heeded() as check:
            for task in tasks:
                with nullcontext() if options.watch is None else options.watch(task.recording.source) as watch:
                    outcome = worker.do(task, watch)
                check()
                take(outcome)
    else:
        _spread(worker, tasks, jobs, take, ordered=ledger is None)
    return tally


@contextmanager
def _heeded() -> Iterator[Callable[[], None]]:
    """Give a function that raises a KeyboardInterrupt which came earlier and was lost.

    libsndfile reads through a callback, and what is raised in a callback of C stays there: the recording would count as
    damaged, and the batch go on.
    """
    has_come = threading.Event()

    def heed(number: int, frame: FrameType | None) -> None:
        has_come.set()
        raise KeyboardInterrupt

    def check() -> None:
        if has_come.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield check
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # who has a handler, or ignores it, has reasons
        signal.signal(signal.SIGINT, heed)
    try:
        yield check
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _share(threads: int | None, jobs: int) -> int | None:
    """Threads of one job."""
    if threads is None and jobs == 1:
        return None
    return max(1, (threads or os.cpu_count() or 1) // jobs)


def _keep(outcome: Outcome, ledger: Ledger) -> Outcome:
    """Write what there is to write, and remember it."""
    if outcome.state == "done":
        targets = ledger.targets(outcome.recording, tuple(outcome.texts))
        try:
            for form, text in outcome.texts.items():
                targets[form].parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(targets[form], text)
        except (OptionError, OSError) as error:  # of this file: its folder's name may be that of a file
            outcome = replace(outcome, state="failed", error=f"{outcome.recording.source}: {error}")
    if outcome.state == "done":
        ledger.finished(outcome.recording, outcome.fingerprint)
    elif outcome.state == "failed":
        ledger.failed(outcome.recording, outcome.error)
    return outcome


def _spread(worker: Worker, tasks: Sequence[Task], jobs: int, take: Report, *, ordered: bool) -> None:
    """Share tasks among processes; when this one is interrupted, they end at once."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C reaches every process of a terminal; only this one decides
    )
    try:
        futures = {pool.submit(_do, worker, task): task for task in tasks}
        waiting: Iterable[Future[Outcome]] = futures if ordered else as_completed(futures)
        for future in waiting:
            take(_outcome(future, futures[future]))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


def _outcome(future: "Future[Outcome]", task: Task) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        message = f"{task.recording.source}: a worker process died, perhaps of too little memory; take fewer --jobs"
        return Outcome(recording=task.recording, state="failed", error=message)


def _do(worker: Worker, task: Task) -> Outcome:
    return _of_this_process(worker).do(task)


@cache
def _of_this_process(worker: Worker) -> Worker:
    """Of equal workers the first: it holds the model."""
    return worker
