"""Batches of recordings: what is skipped, what is done again, what survives a failure or an interrupt."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from diffasr import cli
from diffasr.audio import SAMPLE_RATE_HZ
from diffasr.batch import run as module
from diffasr.batch import work
from diffasr.batch.inputs import Recording, find_recordings
from diffasr.batch.ledger import DONE_FILE, ERRORS_FILE, Ledger
from diffasr.batch.progress import ProgressLine
from diffasr.batch.run import BatchOptions, transcribe_all
from diffasr.batch.work import Outcome, Settings, Task, Worker
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import AudioError, ModelError, OptionError
from diffasr.formats import LineShape
from diffasr.hotwords import Hotwords
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model
from diffasr.transcript import Transcript
from diffasr.windows import ListenOptions

TREE = ("a/x.wav", "a/b/x.wav", "a/b/film.MKV", "y.mp3", "odd.dat")


class Scribe:
    """Stands in for a transcriber: counts its work, and fails where it is told to."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.faults: dict[str, BaseException] = {}

    def transcribe(self, source: Any, *, watch: Any = None, **settings: Any) -> Transcript:
        name = source if isinstance(source, bytes) else Path(source).name
        if name in self.faults:
            raise self.faults[name]
        self.heard.append(name)
        return Transcript(
            text=str(name), language="en", language_probability=None, duration=1.0, segments=(), model="scribe"
        )


@pytest.fixture
def scribe(monkeypatch: pytest.MonkeyPatch) -> Scribe:
    stand_in = Scribe()
    monkeypatch.setattr("diffasr.transcribe.load", lambda *words, **more: stand_in)
    return stand_in


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a model whose files are there and small."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)
    return Settings(model=str(folder), device="cpu", language=None, sampling=SamplingOptions())


def states(recordings: list[Recording], settings: Settings, **options: Any) -> dict[str, str]:
    """What became of each place."""
    seen: dict[str, str] = {}
    tally = transcribe_all(
        recordings, settings, BatchOptions(**options), lambda o: seen.update({o.recording.place.as_posix(): o.state})
    )
    assert sum(tally.values()) == len(seen) == len(recordings)
    return seen


def test_a_worker_loads_as_it_was_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("diffasr.transcribe.load", lambda name, **more: asked.update(more | {"name": name}))
    told = dataclasses.replace(settings, device="cuda", precision="int8", gpu_memory=24.0)
    _ = Worker(settings=told, threads=3).transcriber
    assert asked == {"name": settings.model, "device": "cuda", "precision": "int8", "gpu_memory": 24.0, "threads": 3}
    assert told.basis() != settings.basis(), "a transcript made in another precision is another"


def test_a_line_cut_in_two_is_forgotten_and_spoils_no_other(tmp_path: Path) -> None:
    first, second = (Recording(source=n, place=PurePath(n)) for n in "ab")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    ledger = Ledger(tmp_path)
    ledger.finished(first, "old")
    ledger.finished(first, "new")
    with (tmp_path / DONE_FILE).open("a") as file:
        file.write('{"input": "b", "finger')
    ledger = Ledger(tmp_path)
    assert (ledger.known(first, ["txt"]), ledger.known(second, ["txt"])) == ("new", None)
    ledger.finished(second, "whole")
    assert Ledger(tmp_path).known(second, ["txt"]) == "whole"
    assert Ledger(tmp_path).known(second, ["txt", "json"]) is None, "a file that is missing is not done"


def test_names_that_are_not_text_are_remembered(tmp_path: Path) -> None:
    odd = Recording(source="caf\udce9", place=PurePath(os.fsdecode(b"caf\xe9")))
    (tmp_path / f"{odd.place}.txt").touch()
    ledger = Ledger(tmp_path)
    ledger.finished(odd, "mark")
    ledger.failed(odd, "no sound")
    assert Ledger(tmp_path).known(odd, ["txt"]) == "mark"


def test_only_what_changed_is_done_again(scribe: Scribe, settings: Settings, tree: Path, tmp_path: Path) -> None:
    recordings, out = find_recordings([str(tree)]), tmp_path / "out"
    assert set(states(recordings, settings, folder=out).values()) == {"done"}
    assert (out / "a" / "b" / "x.wav.txt").read_text() == "x.wav\n"
    os.utime(tree / "y.mp3")
    assert set(states(recordings, settings, folder=out).values()) == {"unchanged"}
    assert len(scribe.heard) == 4
    (tree / "y.mp3").write_bytes(b"other")
    (out / "a" / "x.wav.txt").unlink()
    again = states(recordings, settings, folder=out)
    assert [place for place, state in again.items() if state == "done"] == ["a/x.wav", "y.mp3"]
    assert set(states(recordings, settings, folder=out, redo_all=True).values()) == {"done"}


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda"}, {"language": "de"}, {"sampling": SamplingOptions(steps=2)}, {"formats": ("txt", "json")},
        {"shape": LineShape(max_line_width=9)}, {"listen": ListenOptions(vad=False)},
        {"hotwords": Hotwords(words=("bat",))},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_is_in_the_fingerprint(
    scribe: Scribe, settings: Settings, tree: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    recordings, out = find_recordings([str(tree / "y.mp3")]), tmp_path / "out"
    assert states(recordings, settings, folder=out) == {"y.mp3": "done"}
    assert states(recordings, settings, folder=out) == {"y.mp3": "unchanged"}
    assert states(recordings, dataclasses.replace(settings, **change), folder=out) == {"y.mp3": "done"}


def test_model_and_version_are_in_the_fingerprint(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings.basis()
    assert settings.basis() == before
    (Path(settings.model) / "model.safetensors").write_text("trained on")
    trained = settings.basis()
    monkeypatch.setattr(work, "__version__", "99")
    assert len({before, trained, settings.basis()}) == 3


def test_the_references_own_file_can_be_the_model(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "small.pt"
    told = dataclasses.replace(settings, model=str(file))
    with pytest.raises(ModelError, match=r"there is no .*small\.pt"):
        told.basis()
    marks = [told.basis() for content in ("weights", "weights", "others") if file.write_text(content)]
    assert marks[0] == marks[1] != marks[2]


def test_settings_reach_the_transcriber(settings: Settings) -> None:
    settings = dataclasses.replace(settings, language="hi", listen=ListenOptions(vad=False))
    settings = dataclasses.replace(settings, hotwords=Hotwords(words=("bat",)))
    assert settings.arguments() == {
        "language": "hi",
        "options": settings.sampling,
        "listen": settings.listen,
        "hotwords": settings.hotwords,
    }


def test_failures_are_listed_and_tried_again(scribe: Scribe, settings: Settings, tree: Path, tmp_path: Path) -> None:
    recordings, out = find_recordings([str(tree), str(tree / "gone.wav")]), tmp_path / "out"
    scribe.faults = {"x.wav": AudioError("no sound"), "y.mp3": RuntimeError("too large")}
    first = states(recordings, settings, folder=out)
    assert [place for place, state in first.items() if state == "failed"] == [
        "a/b/x.wav",
        "a/x.wav",
        "y.mp3",
        "gone.wav",
    ]
    lines = [json.loads(line) for line in (out / ERRORS_FILE).read_text().splitlines()]
    assert [Path(line["input"]).name for line in lines] == ["x.wav", "x.wav", "y.mp3", "gone.wav"]
    assert [line["error"] for line in lines[1:3]] == ["no sound", f"{tree / 'y.mp3'}: RuntimeError: too large"]
    assert str(tree / "gone.wav") in lines[3]["error"]
    assert all(line["time"].startswith("20") for line in lines)
    scribe.faults = {}
    scribe.heard.clear()
    assert states(recordings[:4], settings, folder=out)["a/b/film.MKV"] == "unchanged"
    assert scribe.heard == ["x.wav", "x.wav", "y.mp3"]
    assert not (out / ERRORS_FILE).exists()


def test_what_cannot_be_written_fails_alone(scribe: Scribe, settings: Settings, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("in the way")
    assert states(find_recordings([str(tree)]), settings, folder=out) == {
        "a/b/film.MKV": "failed", "a/b/x.wav": "failed", "a/x.wav": "failed", "y.mp3": "done",
    }  # fmt: skip


def test_a_model_that_is_not_there_concerns_all(tree: Path, settings: Settings, tmp_path: Path) -> None:
    recordings = find_recordings([str(tree)])
    for folder in (None, tmp_path / "out"):
        with pytest.raises(ModelError, match="nowhere"):
            states(recordings, dataclasses.replace(settings, model="nowhere"), folder=folder)


def test_standard_input_is_a_recording(scribe: Scribe, settings: Settings) -> None:
    told: list[Outcome] = []
    transcribe_all(find_recordings(["-"]), settings, BatchOptions(), told.append, b"sound")
    assert [o.texts for o in told] == [{"txt": "b'sound'\n"}]
    scribe.faults = {b"sound": AudioError("no sound")}  # type: ignore[dict-item]
    transcribe_all(find_recordings(["-"]), settings, BatchOptions(), told.append, b"sound")
    assert told[1].error == "-: no sound"


def test_an_interrupt_keeps_what_is_finished(scribe: Scribe, settings: Settings, tree: Path, tmp_path: Path) -> None:
    recordings, out = find_recordings([str(tree)]), tmp_path / "out"
    scribe.faults = {"y.mp3": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        states(recordings, settings, folder=out)
    scribe.faults = {}
    assert list(states(recordings, settings, folder=out).values()) == ["unchanged"] * 3 + ["done"]
    assert len(scribe.heard) == 4


def test_an_interrupt_that_a_callback_swallowed_is_heeded(
    settings: Settings, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(worker: Worker, task: Task, watch: Any = None) -> Outcome:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return Outcome(recording=task.recording, state="failed", error="damaged")

    monkeypatch.setattr(Worker, "do", do)
    told: list[Outcome] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    try:
        with pytest.raises(KeyboardInterrupt):
            transcribe_all(find_recordings([str(tree)]), settings, BatchOptions(), told.append)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == []


class Threads(ThreadPoolExecutor):
    """Processes, for a test that has no time for them."""

    def __init__(
        self, jobs: int, *, mp_context: Any, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> None:
        assert mp_context.get_start_method() == "spawn"
        assert (initializer, initargs) == (signal.signal, (signal.SIGINT, signal.SIG_IGN))
        super().__init__(jobs)


@pytest.mark.parametrize(("writes", "order"), [(False, ["y.mp3", "odd.dat"]), (True, ["odd.dat", "y.mp3"])])
def test_the_screen_keeps_the_order_and_files_come_when_they_are_done(
    settings: Settings, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool, order: list[str]
) -> None:
    def do(worker: Worker, task: Task, watch: Any = None) -> Outcome:
        time.sleep(0.2 if task.recording.place.name == "y.mp3" else 0)
        return Outcome(recording=task.recording, state="done", texts={"txt": ""})

    monkeypatch.setattr(module, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(Worker, "do", do)
    recordings = find_recordings([str(tree / "y.mp3"), str(tree / "odd.dat")])
    assert list(states(recordings, settings, jobs=2, folder=tmp_path / "out" if writes else None)) == order


def test_a_worker_that_died_is_a_failure_of_its_recording() -> None:
    future: Future[Outcome] = Future()
    future.set_exception(BrokenProcessPool())
    told = module._outcome(future, Task(recording=Recording(source="x.wav", place=PurePath("x.wav"))))
    assert told.state == "failed" and "x.wav" in told.error and "--jobs" in told.error


@pytest.mark.parametrize(("threads", "jobs", "each"), [(None, 1, None), (4, 1, 4), (7, 2, 3), (1, 2, 1), (None, 2, 3)])
def test_jobs_share_the_threads(
    scribe: Scribe,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    threads: int | None,
    jobs: int,
    each: int | None,
) -> None:
    used: list[int | None] = []
    monkeypatch.setattr("diffasr.transcribe.load", lambda *words, threads, **more: used.append(threads) or scribe)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Threads)
    module._of_this_process.cache_clear()
    states([Recording(source=n, place=PurePath(n)) for n in "ab"], settings, threads=threads, jobs=jobs)
    assert set(used) == {each}


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"threads": 0}, {"jobs": 2, "watch": print}])
def test_bad_options_fail_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        BatchOptions(**wrong)


def test_progress_leaves_out_what_was_done_before() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    twins = [Recording(source=n, place=PurePath(n)) for n in ("a", "b")]
    with ProgressLine(twins, terminal, is_shown=True) as line:
        line.advance(Outcome(recording=twins[0], state="unchanged"))
        (task,) = line._bar.tasks
        assert (task.completed, task.total, task.fields["files"]) == (0, 1, 1)
        line.advance(Outcome(recording=twins[1], state="done"))
        assert line._bar.tasks[0].percentage == 100
        line.say("[told] in between")
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of 2" in shown and "[told] in between" in shown


def test_progress_can_be_silent() -> None:
    stream = Console(file=io.StringIO())
    one = Recording(source="a", place=PurePath("a"))
    with ProgressLine([one], stream, is_shown=False) as line:
        line.advance(Outcome(recording=one, state="done"))
        line.say("told")
    assert stream.file.getvalue() == "told\n"  # type: ignore[attr-defined]


SLOW_CALL = """
import os, signal, sys, time
from diffasr.transcribe import Transcriber
work = Transcriber.transcribe
def slow(self, *words, **more):
    with open(os.environ["DECODES"], "a") as file:
        file.write("1")
    time.sleep(0.2)
    return work(self, *words, **more)
Transcriber.transcribe = slow
if __name__ == "__main__":
    from diffasr.cli import main
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_keeps_what_is_finished_and_the_next_call_goes_on(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    save(tmp_path / "tiny", model)
    sound = 0.1 * np.random.default_rng(0).standard_normal((12, SAMPLE_RATE_HZ // 2))
    (tmp_path / "in").mkdir()
    for number, noise in enumerate(sound):
        soundfile.write(tmp_path / "in" / f"{number}.wav", noise, SAMPLE_RATE_HZ)
    script, decodes, out = tmp_path / "slow.py", tmp_path / "decodes", tmp_path / "out"
    script.write_text(SLOW_CALL)
    monkeypatch.setenv("DECODES", str(decodes))
    words = ["transcribe", str(tmp_path / "in"), "--model", str(tmp_path / "tiny"), "--format", "txt,json"]
    call = [sys.executable, str(script), *words, "--output-dir", str(out), "--jobs", jobs]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    ended = time.monotonic() + 300
    while len(list(out.glob("*.json"))) < 3 and time.monotonic() < ended:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the call
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "the same call goes on" in told
    before = len(decodes.read_text())
    finished = (out / DONE_FILE).read_text().splitlines()
    assert 3 <= len(finished) < 12
    assert before <= len(finished) + 1 + int(jobs), "no more was decoded than was written or in work"
    again = subprocess.run(call, stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(decodes.read_text()) - before == 12 - len(finished)
    assert cli.main([*words, "--output-dir", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole").glob("*.wav.*"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert not list(out.glob(".*.tmp"))
