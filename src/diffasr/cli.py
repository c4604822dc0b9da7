"""The command line: ``parse`` turns words into arguments, ``run`` does what they say.

Exit codes: 0 all done, 1 some recording or step failed, 2 the call itself was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffasr import __version__
from diffasr.errors import AudioError, DiffasrError, OptionError, RecipeError
from diffasr.text import LANGUAGES

if TYPE_CHECKING:
    from diffasr.diffusion.sampler import SamplingOptions
    from diffasr.transcribe import Transcriber
    from diffasr.transcript import Transcript


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the call; prints help or a usage error and leaves when that is what the call wants."""
    parser = argparse.ArgumentParser(prog="diffasr", description="Speech recognition by text diffusion.")
    parser.add_argument("--version", action="version", version=f"diffasr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

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

    learn = commands.add_parser("train", help="run a training recipe; run again to go on")
    learn.add_argument("recipe", type=Path, help="a recipe.toml, or the folder that holds it")
    learn.add_argument("--out", type=Path, default=Path("runs/latest"), help="default: %(default)s")
    learn.add_argument("--overfit", type=int, default=0, metavar="N", help="memorise the first N utterances")
    learn.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")

    score = commands.add_parser("score", help="character error rates of a model on a manifest")
    score.add_argument("manifest", type=Path, help="NeMo JSON lines")
    score.add_argument("--model", default="mini", help="default: %(default)s")
    decoders = ("ctc", "ar", "diffusion")
    score.add_argument("--decoders", choices=decoders, nargs="+", default=list(decoders), help="default: all three")
    score.add_argument("--steps", type=int, nargs="+", default=[8], help="default: 8")
    score.add_argument("--start", choices=("ctc", "noise"), nargs="+", default=["ctc"], help="default: ctc")
    score.add_argument("--find-language", action="store_true", help="do not tell the model the language")
    score.add_argument("--out", type=Path, metavar="FILE", help="write every hypothesis here, as JSON lines")

    about = commands.add_parser("info", help="what is inside a model")
    about.add_argument("model", nargs="?", default="mini", help="mini, 26b, a folder or a hub id (default: mini)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; returns the exit code. Raises DiffasrError for what cannot be done at all."""
    match args.command:
        case "transcribe":
            return _transcribe(args)
        case "train":
            return _train(args)
        case "score":
            return _score(args)
        case "info":
            return _info(args)
    raise OptionError(f"no command {args.command!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: errors of ours become one line on stderr."""
    args = parse(argv)
    try:
        return run(args)
    except (OptionError, RecipeError) as error:
        print(f"diffasr: {error}", file=sys.stderr)
        return 2
    except DiffasrError as error:
        print(f"diffasr: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("diffasr: interrupted", file=sys.stderr)
        return 130


def _transcribe(args: argparse.Namespace) -> int:
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


def _train(args: argparse.Namespace) -> int:
    import torch

    from diffasr.train.loop import train
    from diffasr.train.stages import Recipe

    recipe = Recipe.load(args.recipe)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(train(recipe, args.out, overfit=args.overfit))
    return 0


def _score(args: argparse.Namespace) -> int:
    from diffasr.evaluate.run import score_manifest

    print(score_manifest(args))
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.model == "26b":
        from diffasr.model.info import describe_26b, render

        print(render(describe_26b()))
        return 0
    from diffasr.model.checkpoint import load, summary

    print(summary(load(args.model)))
    return 0
