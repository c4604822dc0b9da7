"""The mini beside faster-whisper: the same clips and threads, one clip and eight at a time, by turns; and cold starts.

    python benchmarks/speed.py MANIFEST --whisper FOLDER [--clips 5] [--rounds 5] [--threads 2] [--precision auto]
        [--set steps=4 --set accept=all ...]

Each system runs in a process of its own, which waits while the other works, so that peak memory is told apart and a
slow moment of the machine falls on both. Both are told the language. Whisper is greedy (beam 1), int8, without a second
try and without timestamps; its batches are those of ``BatchedInferencePipeline``. ``--set`` gives a field of
SamplingOptions.
Cold: a whole process, from its start to the text of one clip. Prints Markdown tables.
"""

import argparse
import ast
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffasr.audio import SAMPLE_RATE_HZ, load_audio
from diffasr.text import LANGUAGES

BATCH = 8
Clips = list[tuple[Any, str]]
"""Samples and language."""


def main() -> None:
    """Measure by turns and print the tables; as a worker, obey."""
    args = parse()
    if args.work:
        serve(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder) / "clips.npz")
    cold(args)


def measure(args: argparse.Namespace, file: Path) -> None:
    """Both systems by turns on the clips, which go to the workers in ``file``; print the table."""
    seconds = prepare(args, file) / SAMPLE_RATE_HZ
    workers = {name: Worker(name, file) for name in ("mini", "whisper")}
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds + 1):  # the first is a warm-up
        for batch in (1, BATCH):
            for name, worker in workers.items():
                times.setdefault((name, batch), []).append(worker.ask(batch)["seconds"])
    for worker in workers.values():
        worker.ask(0)
    alone = {(name, batch): lone_peak(name, batch, file) for name in workers for batch in (1, BATCH)}
    print(f"{len(LANGUAGES) * args.clips} clips, {seconds:.0f} s, {args.threads} threads, {args.rounds} rounds, "
          f"precision {args.precision}, options {dict(args.set)}")  # fmt: skip
    print(f"| system | batch | seconds | RTFx | times faster-whisper | peak MiB |\n{'|---' * 6}|")
    for (name, batch), measured in times.items():
        median = statistics.median(measured[1:])
        ratio = statistics.median(w / m for w, m in zip(times["whisper", batch][1:], measured[1:], strict=True))
        print(f"| {name} | {batch} | {median:.2f} | {seconds / median:.1f} | {ratio:.2f} | {alone[name, batch]:.0f} |")


def parse() -> argparse.Namespace:
    """Arguments of the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--whisper", required=True, help="folder of a CTranslate2 Whisper")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clips", type=int, default=BATCH, help="of each language")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", choices=("mini", "whisper"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def setting(text: str) -> tuple[str, Any]:
    """A field of SamplingOptions and its value."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class Worker:
    """A process that runs one system when it is asked to."""

    def __init__(self, name: str, file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--work", name, "--file", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, batch: int) -> dict[str, float]:
        """Run all clips, ``batch`` at a time, and say how long it took; 0: say the peak memory and leave."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        return answer


def lone_peak(name: str, batch: int, file: Path) -> float:
    """MiB of a process that does nothing else."""
    worker = Worker(name, file)
    worker.ask(batch)
    return worker.ask(0)["peak"]


def serve(args: argparse.Namespace) -> None:
    """Answer a line with a line, until told to leave."""
    run = ready(args)
    stored = np.load(args.file)
    clips = [(stored[name], name.partition(" ")[0]) for name in stored.files]
    for line in sys.stdin:
        batch = int(line)
        started = time.perf_counter()
        for start in range(0, len(clips) if batch else 0, batch or 1):
            run(clips[start : start + batch])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak}), flush=True)
        if not batch:
            return


def prepare(args: argparse.Namespace, file: Path) -> int:
    """Write so many clips of each language, spread over the manifest, for the workers, of which one must not load torch
    only to read them; returns the number of samples."""
    from diffasr.train.data import read_manifest

    utterances = read_manifest(args.manifest)
    clips = {}
    for code in LANGUAGES:
        mine = [u for u in utterances if u.language == code]
        chosen = mine[:: max(1, len(mine) // args.clips)][: args.clips]
        clips |= {f"{code} {n}": load_audio(u.audio) for n, u in enumerate(chosen)}
    np.savez(file, allow_pickle=False, **clips)
    return sum(len(samples) for samples in clips.values())


def ready(args: argparse.Namespace) -> Callable[[Clips], None]:
    """A function that writes down clips together. Those of several languages in one batch are cut where it changes."""
    write = _mini(args) if args.work == "mini" else _whisper(args)

    def run(clips: Clips) -> None:
        for code in dict.fromkeys(language for _, language in clips):
            write([samples for samples, language in clips if language == code], code)

    return run


def _mini(args: argparse.Namespace) -> Callable[[list[Any], str], None]:
    import diffasr

    asr = diffasr.load(args.model, precision=args.precision, threads=args.threads)
    options = diffasr.SamplingOptions(**dict(args.set))

    def write(samples: list[Any], code: str) -> None:
        asr.transcribe(samples if len(samples) > 1 else samples[0], language=code, options=options)

    return write


def _whisper(args: argparse.Namespace) -> Callable[[list[Any], str], None]:
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(args.whisper, device="cpu", compute_type="int8", cpu_threads=args.threads)
    together = BatchedInferencePipeline(model)
    plain: dict[str, Any] = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True}
    plain |= {"condition_on_previous_text": False, "compression_ratio_threshold": None}
    plain |= {"log_prob_threshold": None, "no_speech_threshold": None}

    def write(samples: list[Any], code: str) -> None:
        if len(samples) == 1:
            segments, _ = model.transcribe(samples[0], language=code, **plain)
        else:
            ends = np.cumsum([len(s) for s in samples]) / SAMPLE_RATE_HZ
            spans = [{"start": end - len(s) / SAMPLE_RATE_HZ, "end": end} for s, end in zip(samples, ends, strict=True)]
            tail = np.zeros(SAMPLE_RATE_HZ // 10, np.float32)  # the last span must not end behind the sound
            segments, _ = together.transcribe(
                np.concatenate((*samples, tail)), language=code, batch_size=len(samples), clip_timestamps=spans, **plain
            )
        list(segments)  # decoded while they are read

    return write


def cold(args: argparse.Namespace) -> None:
    """Seconds from the start of a process to its end, medians of rounds by turns."""
    sample = str(Path(__file__).parent.parent / "samples" / "de.opus")
    steps = [f"--steps={value}" for name, value in args.set if name == "steps"]
    ours = ["-m", "diffasr", "transcribe", sample, "--language", "de", "--model", args.model, *steps]
    theirs = (
        "from faster_whisper import WhisperModel\n"
        f"model = WhisperModel({args.whisper!r}, device='cpu', compute_type='int8', cpu_threads={args.threads})\n"
        f"print([s.text for s in model.transcribe({sample!r}, language='de', beam_size=1, without_timestamps=True)[0]])"
    )
    calls = {
        "diffasr transcribe (4.5 s of audio)": ours,
        "faster-whisper, the same clip": ["-c", theirs],
        "import diffasr": ["-c", "import diffasr"],
        "import diffasr.transcribe": ["-c", "import diffasr.transcribe"],
        "import torch": ["-c", "import torch"],
        "import faster_whisper": ["-c", "import faster_whisper"],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *call], check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    print("\n| a whole process | seconds |\n|---|---|")
    for name, measured in times.items():
        print(f"| {name} | {statistics.median(measured[1:]):.2f} |")


if __name__ == "__main__":
    main()
