"""``diffasr transcribe``: recordings in, transcripts on the screen or in files."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffasr.errors import AudioError, OptionError
from diffasr.text import LANGUAGES

if TYPE_CHECKING:
    from diffasr.cli import Commands
    from diffasr.diffusion.sampler import SamplingOptions
    from diffasr.transcribe import Transcriber
    from diffasr.transcript import Transcript


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    speak = commands.add_parser("transcribe", help="write down what recordings say")
    speak.add_argument("files", nargs="+", metavar="FILE", help="audio or video files")
    speak.add_argument("--model", default="mini", help="mini, a checkpoint folder, or a hub id (default: %(default)s)")
    speak.add_argument("--language", choices=list(LANGUAGES), help="default: the model finds it")
    speak.add_argument("--steps", type=int, default=8, help="denoising steps, at most (default: %(default)s)")
    speak.add_argument("--start", choices=("ctc", "noise"), default="ctc", help="first canvas (default: %(default)s)")
    speak.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
    speak.add_argument("--format", choices=("txt", "json"), default="txt", help="default: %(default)s")
    speak.add_argument("--output-dir", type=Path, metavar="DIR", help="write FILE.txt or FILE.json here")
    speak.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    speak.add_argument("--watch", action="store_true", help="show the canvas settling, step by step")
    speak.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe each file; one that fails is told and the others go on."""
    from diffasr.diffusion.sampler import SamplingOptions
    from diffasr.transcribe import load

    options = SamplingOptions(steps=args.steps, start=args.start, seed=args.seed)
    targets = _targets(args.files, args.output_dir, args.format)
    asr = load(args.model, device=args.device)
    failed = 0
    for file in args.files:
        try:
            result = (
                _watched(asr, file, args.language, options)
                if args.watch
                else asr.transcribe(file, language=args.language, options=options)
            )
        except AudioError as error:
            print(f"diffasr: {error}", file=sys.stderr)
            failed += 1
            continue
        _deliver(file, result, targets.get(file), args)
    if failed:
        print(f"diffasr: {failed} of {len(args.files)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _targets(files: Sequence[str], folder: Path | None, ending: str) -> dict[str, Path]:
    """Where each file's transcript goes; raises OptionError when two would be one."""
    if folder is None:
        return {}
    targets = {file: folder / f"{Path(file).name}.{ending}" for file in files}
    names: dict[Path, str] = {}
    for file, target in targets.items():
        if target in names:
            raise OptionError(f"{names[target]} and {file} would both be written to {target}: call them one by one")
        names[target] = file
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"--output-dir {folder} can't be made: {error.strerror}; name a folder that you may write"
        ) from error
    return targets


def _deliver(file: str, result: "Transcript", target: Path | None, args: argparse.Namespace) -> None:
    from diffasr.formats import render, write_text_atomically

    text = render(result, args.format)
    if target is not None:
        write_text_atomically(target, text)
        print(f"{file} -> {target}", file=sys.stderr)
    elif len(args.files) > 1 and args.format == "txt":
        print(f"{file} [{result.language}]\n  {text.strip()}", flush=True)
    else:
        print(text, end="", flush=True)


def _watched(asr: "Transcriber", file: str, language: str | None, options: "SamplingOptions") -> "Transcript":
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as screen:

        def watch(window: int, step: int, draft: str) -> None:
            screen.update(Text(f"{file}  window {window + 1}  step {step}\n{draft}"), refresh=True)

        return asr.transcribe(file, language=language, options=options, watch=watch)
