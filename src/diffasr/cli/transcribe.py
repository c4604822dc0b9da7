"""``diffasr transcribe``: recordings in, transcripts on the screen or in files."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffasr.errors import OptionError
from diffasr.formats import FORMATS
from diffasr.text import LANGUAGES

if TYPE_CHECKING:
    from diffasr.batch.inputs import Recording
    from diffasr.batch.progress import ProgressLine
    from diffasr.batch.run import BatchOptions
    from diffasr.batch.work import Outcome, Settings
    from diffasr.cli import Commands
    from diffasr.transcribe import Watch
    from diffasr.windows import ListenOptions

STDOUT = "-"
_OTHER_NAMES = {"chinese": "zh"}
"""Names of languages that Whisper has and ``LANGUAGES`` has not."""


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    speak = commands.add_parser(
        "transcribe",
        help="write down what recordings say",
        epilog="Flags of whisper that mean the same are understood too: --output_dir, --output_format, --threads, …",
    )
    speak.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="audio or video file, folder, quoted pattern ('talks/**'), or -"
    )
    speak.add_argument("--model", default="mini", help="mini, a checkpoint folder, or a hub id (default: %(default)s)")
    speak.add_argument(
        "--language", type=_language, metavar="NAME",
        help=f"{', '.join(LANGUAGES)}, or an English name; default: the model finds it",
    )  # fmt: skip
    speak.add_argument("--steps", type=int, default=8, help="denoising steps, at most (default: %(default)s)")
    speak.add_argument("--start", choices=("ctc", "sample", "noise"), default="ctc",
                       help="first canvas (default: %(default)s)")  # fmt: skip
    speak.add_argument(
        "--hotwords", metavar="WORD,…", help="words to prefer where they are heard; or @FILE, with one on each line"
    )
    speak.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    speak.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    add_loading(speak)
    speak.add_argument("--watch", action="store_true", help="show the canvas settling, step by step")
    _add_output(speak)
    _add_writing(speak)
    _add_listening(speak)
    _add_batch(speak)
    _add_aliases(speak)
    speak.set_defaults(run=run)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How weights are kept: what ``diffasr.load`` takes besides a device."""
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "int8", "int4"), default="auto",
        help="of the weights (default: %(default)s; int4: gemma models only)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB",
        help="of each card: lay a gemma model over the cards and the host, as info --plan tells",
    )  # fmt: skip


def _add_output(speak: argparse.ArgumentParser) -> None:
    form = speak.add_argument_group("what is written")
    form.add_argument(
        "--format", type=_formats, default=("txt",), metavar="NAME,…",
        help=f"of {', '.join(FORMATS)}; or all (default: txt)",
    )  # fmt: skip
    form.add_argument(
        "--output-dir", metavar="DIR", help="write FILE.txt and so on here; - is standard output (default: -)"
    )
    form.add_argument("--max-line-width", type=int, metavar="N", help="columns of a line in subtitles")
    form.add_argument("--max-line-count", type=int, metavar="N", help="lines that subtitles show together")
    form.add_argument("--max-words-per-line", type=int, metavar="N", help="words of a line in subtitles")
    form.add_argument("--highlight-words", action="store_true", help="mark each word when it is said")


def _add_writing(speak: argparse.ArgumentParser) -> None:
    pen = speak.add_argument_group("how it is written")
    pen.add_argument("--votes", type=int, metavar="N",
                     help="canvases of each window, merged (default: 1, or as many as --alternatives)")  # fmt: skip
    pen.add_argument("--alternatives", type=int, default=0, metavar="N",
                     help="texts of each window in JSON, at most, the best first (default: %(default)s)")  # fmt: skip
    pen.add_argument("--ctc-weight", type=float, default=0.0, metavar="X",
                     help="how much CTC counts beside the denoiser where both do not write jointly, which it turns off "
                     "(default: %(default)g)")  # fmt: skip
    pen.add_argument("--temperature", type=float, default=0.0, metavar="X",
                     help="of the first step, falling to 0, which takes the likeliest; turns joint writing off "
                     "(default: 0)")  # fmt: skip


def _add_listening(speak: argparse.ArgumentParser) -> None:
    ears = speak.add_argument_group("what is listened to")
    ears.add_argument("--no-vad", dest="vad", action="store_false", default=None,
                      help="decode every second, not only where the detector hears speech")  # fmt: skip
    ears.add_argument("--context", action="store_true", default=None,
                      help="show each window the text of the one before")  # fmt: skip
    helps = {
        "--threshold": "probability from which on the detector is believed (default: 0.5)",
        "--window-seconds": "length of windows to aim at (default: 12)",
        "--pause-seconds": "silence that always ends a window (default: 1)",
        "--margin-seconds": "sound kept on both sides of speech (default: 0.3)",
        "--max-seconds": "refuse longer recordings (default: six hours)",
    }
    for name, text in helps.items():
        ears.add_argument(name, type=float, metavar="X", help=text)


def _add_batch(speak: argparse.ArgumentParser) -> None:
    many = speak.add_argument_group("many recordings")
    many.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each with a model (default: 1)")
    many.add_argument("--threads", type=int, metavar="N", help="CPU threads of all jobs (default: one a core)")
    many.add_argument("--redo-all", action="store_true", help="also what is done already, with the same settings")
    many.add_argument("--quiet", action="store_true", help="no progress, only errors")


def _add_aliases(speak: argparse.ArgumentParser) -> None:
    """Whisper's own names, where they mean the same: for scripts that call it."""
    kinds: dict[str, dict[str, Any]] = {
        "--output_dir": {"dest": "output_dir"},
        "-o": {"dest": "output_dir"},
        "--output_format": {"dest": "format", "type": _formats},
        "-f": {"dest": "format", "type": _formats},
        "--max_line_width": {"dest": "max_line_width", "type": int},
        "--max_line_count": {"dest": "max_line_count", "type": int},
        "--max_words_per_line": {"dest": "max_words_per_line", "type": int},
        "--highlight_words": {"dest": "highlight_words", "type": _truth},
        "--condition_on_previous_text": {"dest": "context", "type": _truth},
        "--compression_ratio_threshold": {"dest": "compression_ratio", "type": float},
        "--word_timestamps": {"choices": ("True",)},  # words always have times; there is no way to leave them out
        "--task": {"choices": ("transcribe",)},
    }
    for name, kind in kinds.items():
        speak.add_argument(name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)


def _language(text: str) -> str:
    """A code, from a code or an English name."""
    names = {name.lower(): code for code, name in LANGUAGES.items()} | _OTHER_NAMES
    code = names.get(text.lower(), text.lower())
    if code not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise argparse.ArgumentTypeError(f"{text!r} is not known; choose one of {known}, or leave it out")
    return code


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(f"{name!r} is not a format: choose of {', '.join(FORMATS)}, or all")
    return FORMATS if "all" in names else names


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text == "True"


def run(args: argparse.Namespace) -> int:
    """Transcribe each recording; one that fails is told and the others go on."""
    from diffasr.batch.inputs import STDIN, find_recordings
    from diffasr.batch.run import transcribe_all

    options, settings = _options(args), _settings(args)
    if options.folder is None and len(args.format) > 1:
        raise OptionError(f"{len(args.format)} formats can't share standard output: give --output-dir, or one format")
    recordings = find_recordings(args.inputs)
    stdin = sys.stdin.buffer.read() if any(r.source == STDIN for r in recordings) else b""
    states: list[str] = []
    with _line(args, recordings, options) as line:

        def report(outcome: "Outcome") -> None:
            states.append(outcome.state)
            _tell(outcome, args, line, is_alone=len(recordings) == 1)
            line.advance(outcome)

        try:
            transcribe_all(recordings, settings, options, report, stdin)
        except KeyboardInterrupt:
            if options.folder is not None:
                line.say(f"diffasr: {len(states)} of {len(recordings)} files are dealt with; the same call goes on")
            raise
        return _sum_up(states, line, options, is_quiet=args.quiet)


def _settings(args: argparse.Namespace) -> "Settings":
    """What a transcript depends on; raises OptionError."""
    from diffasr.batch.work import Settings
    from diffasr.diffusion.options import SamplingOptions
    from diffasr.formats import LineShape
    from diffasr.hotwords import read_list

    return Settings(
        model=args.model,
        device=args.device,
        precision=args.precision,
        gpu_memory=args.gpu_memory,
        language=args.language,
        sampling=SamplingOptions(
            steps=args.steps,
            start=args.start,
            seed=args.seed,
            votes=max(1, args.alternatives) if args.votes is None else args.votes,
            alternatives=args.alternatives,
            ctc_weight=args.ctc_weight,
            temperature=args.temperature,
        ),
        listen=_listening(args),
        hotwords=read_list(args.hotwords),
        formats=args.format,
        shape=LineShape(
            max_line_width=args.max_line_width,
            max_line_count=args.max_line_count,
            max_words_per_line=args.max_words_per_line,
            highlight_words=args.highlight_words,
        ),
    )


def _listening(args: argparse.Namespace) -> "ListenOptions | None":
    """None where nothing was asked for; raises OptionError."""
    from diffasr.windows import ListenOptions

    names = (
        "vad",
        "context",
        "threshold",
        "window_seconds",
        "pause_seconds",
        "margin_seconds",
        "max_seconds",
        "compression_ratio",
    )
    wanted = {name: getattr(args, name, None) for name in names}
    given = {name: value for name, value in wanted.items() if value is not None}
    return ListenOptions(**given) if given else None


def _options(args: argparse.Namespace) -> "BatchOptions":
    """How the work is done; raises OptionError."""
    from diffasr.batch.run import BatchOptions

    return BatchOptions(
        folder=None if args.output_dir in (None, STDOUT) else Path(args.output_dir),
        jobs=args.jobs,
        threads=args.threads,
        redo_all=args.redo_all,
        watch=_watched if args.watch else None,
    )


def _line(args: argparse.Namespace, recordings: "Sequence[Recording]", options: "BatchOptions") -> "ProgressLine":
    """Progress, on a terminal that nothing else is shown on."""
    from rich.console import Console

    from diffasr.batch.progress import ProgressLine

    is_free = sys.stderr.isatty() and (options.folder is not None or not sys.stdout.isatty())
    is_shown = is_free and len(recordings) > 1 and not (args.quiet or args.watch)
    return ProgressLine(recordings, Console(stderr=True), is_shown=is_shown)


def _tell(outcome: "Outcome", args: argparse.Namespace, line: "ProgressLine", *, is_alone: bool) -> None:
    """One recording is done: its text where no folder takes it, a word about it where one does."""
    source, is_written = outcome.recording.source, args.output_dir not in (None, STDOUT)
    if outcome.state == "failed":
        line.say(f"diffasr: {outcome.error}")
    elif is_written:
        if outcome.state == "done" and not args.quiet:
            endings = next(iter(outcome.texts)) if len(outcome.texts) == 1 else f"{{{','.join(outcome.texts)}}}"
            line.say(f"{source} -> {Path(args.output_dir) / outcome.recording.place}.{endings}")
    elif args.format == ("txt",) and not is_alone:
        print(f"{source} [{outcome.language}]\n  {outcome.texts['txt'].strip()}", flush=True)
    else:
        print(*outcome.texts.values(), sep="", end="", flush=True)


def _sum_up(states: Sequence[str], line: "ProgressLine", options: "BatchOptions", *, is_quiet: bool) -> int:
    """A last word on stderr; returns the exit code."""
    from diffasr.batch.ledger import ERRORS_FILE

    count = Counter(states)
    if options.folder is not None and count["unchanged"] and not is_quiet:
        line.say(f"diffasr: {count['unchanged']} of {len(states)} files were done already")
    if count["failed"]:
        where = "" if options.folder is None else f": see {options.folder / ERRORS_FILE}"
        line.say(f"diffasr: {count['failed']} of {len(states)} files failed{where}")
    return 1 if count["failed"] else 0


@contextmanager
def _watched(source: str) -> "Iterator[Watch]":
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as screen:

        def watch(window: int, step: int, draft: str) -> None:
            screen.update(Text(f"{source}  window {window + 1}  step {step}\n{draft}"), refresh=True)

        yield watch
