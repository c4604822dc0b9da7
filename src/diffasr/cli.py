"""The command line: ``parse`` turns words into arguments, ``run`` does what they say.

Exit codes: 0 all done, 1 some recording or step failed, 2 the call itself was wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffasr import __version__
from diffasr.errors import AudioError, DiffasrError, OptionError, RecipeError
from diffasr.text import LANGUAGES

if TYPE_CHECKING:
    from diffasr.diffusion.sampler import SamplingOptions
    from diffasr.evaluate.against import Standard
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

    _add_evaluation(commands)

    about = commands.add_parser("info", help="what is inside a model")
    about.add_argument("model", nargs="?", default="mini", help="mini, 26b, a folder or a hub id (default: mini)")
    return parser.parse_args(argv)


def _add_evaluation(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands that measure: ``evaluate`` decodes and scores, ``score`` scores again."""
    judge = commands.add_parser("evaluate", help="error rates and speed of every decoder of a model, with a report")
    judge.add_argument("sets", nargs="+", metavar="SET", help="NeMo JSON lines, or e.g. hf:fleurs:de:test")
    judge.add_argument("--model", default="mini", help="mini, a checkpoint folder, or a hub id (default: %(default)s)")
    judge.add_argument(
        "--decoders",
        type=_words,
        default=("ctc", "ar", "diffusion", "seeded"),
        metavar="NAME,…",
        help="of ctc, ar, diffusion (from noise), seeded (from CTC's text), vote; default: all but vote",
    )
    judge.add_argument("--steps", type=_numbers, default=(8,), metavar="N,…", help="denoising steps (default: 8)")
    judge.add_argument("--seeds", type=int, default=1, help="runs of each random decoder (default: %(default)s)")
    judge.add_argument("--votes", type=int, default=3, help="canvases of the decoder vote (default: %(default)s)")
    judge.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="whisper:MODEL[:ct2]",
        help="a Whisper on the same audio; may be given again",
    )
    judge.add_argument("--beams", type=_numbers, default=(1,), metavar="N,…", help="of baselines (default: 1)")
    judge.add_argument("--normaliser", default="basic", help="basic, whisper, leaderboard, none (default: %(default)s)")
    judge.add_argument("--batch", type=int, default=1, help="recordings decoded together (default: %(default)s)")
    judge.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    judge.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    judge.add_argument("--find-language", action="store_true", help="do not tell the systems the language")
    judge.add_argument("--limit", type=int, help="recordings of each language (default: all)")
    judge.add_argument("--out", type=Path, default=Path("runs/evaluation"), metavar="DIR",
                       help="rows, report and plots; run again to go on (default: %(default)s)")  # fmt: skip
    _add_judgement(judge)

    score = commands.add_parser("score", help="score the raw rows of an evaluation again, without decoding")
    score.add_argument("rows", type=Path, metavar="DIR_OR_JSONL", help="what `evaluate` wrote")
    score.add_argument("--normaliser", default="basic", help="basic, whisper, leaderboard, none (default: %(default)s)")
    score.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two systems: paired difference, worst recordings"
    )
    score.add_argument("--out", type=Path, metavar="DIR", help="write report and plots here as well")
    _add_judgement(score)


def _add_judgement(command: argparse.ArgumentParser) -> None:
    """What a report may be seen beside."""
    command.add_argument("--log", type=Path, metavar="LOG.jsonl", help="of a training run: its curves in the report")
    command.add_argument(
        "--against", type=Path, metavar="REPORT.json", help="say what got better or worse since this report"
    )
    command.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="exit code 1 if the mean CER of a headline system rose by more since --against (default: 1)",
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from error


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; returns the exit code. Raises DiffasrError for what cannot be done at all."""
    match args.command:
        case "transcribe":
            return _transcribe(args)
        case "train":
            return _train(args)
        case "evaluate":
            return _evaluate(args)
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


def _evaluate(args: argparse.Namespace) -> int:
    from diffasr.evaluate.page import render
    from diffasr.evaluate.report import write_report
    from diffasr.evaluate.run import EvaluationOptions, evaluate

    options = EvaluationOptions(
        decoders=args.decoders, steps=args.steps, seeds=args.seeds, votes=args.votes, baselines=args.baseline,
        beams=args.beams, normaliser=args.normaliser, batch=args.batch, threads=args.threads, device=args.device,
        find_language=args.find_language, limit=args.limit,
    )  # fmt: skip
    standard, training = _beside(args, args.out)  # what is wrong with them is known before hours of decoding
    evaluate(args.model, args.sets, options, args.out)
    report = write_report(args.out, args.normaliser, args.out, training=training)
    print(render(report), end="")
    return _judge(standard, report, args.out)


def _score(args: argparse.Namespace) -> int:
    from diffasr.evaluate.compare import compare
    from diffasr.evaluate.folder import read_facts, read_rows
    from diffasr.evaluate.page import render
    from diffasr.evaluate.report import build_report, write_report

    rows = read_rows(args.rows)
    standard, training = _beside(args, args.rows)
    if args.compare:
        first, second = args.compare
        print(compare(rows, first, second, args.normaliser))
    if args.out is not None:
        report = write_report(args.rows, args.normaliser, args.out, training=training)
    elif standard is not None or not args.compare:
        report = build_report(rows, args.normaliser, read_facts(args.rows), training=training)
    else:
        return 0
    if not args.compare:
        print(render(report), end="")
    return _judge(standard, report, args.rows)


def _beside(args: argparse.Namespace, rows: Path) -> "tuple[Standard | None, dict[str, Any] | None]":
    """The earlier report and the log of a training run that the call names."""
    from diffasr.evaluate.against import load_standard
    from diffasr.evaluate.training_log import read_log

    if args.margin is not None and args.against is None:
        raise OptionError(f"--margin {args.margin:g} says how far a report may fall behind: name it with --against")
    standard = None
    if args.against is not None:
        margin = 1.0 if args.margin is None else args.margin
        standard = load_standard(args.against, margin, normaliser=args.normaliser, rows=rows)
    return standard, read_log(args.log) if args.log else None


def _judge(standard: "Standard | None", report: "dict[str, Any]", rows: Path) -> int:
    from diffasr.evaluate.against import judge
    from diffasr.evaluate.folder import read_rows

    if standard is None:
        return 0
    page, failed = judge(standard, report, read_rows(rows))
    print(f"\n{page}")
    for sentence in failed:
        print(f"diffasr: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _info(args: argparse.Namespace) -> int:
    if args.model == "26b":
        from diffasr.model.info import describe_26b, render

        print(render(describe_26b()))
        return 0
    from diffasr.model.checkpoint import load, summary

    print(summary(load(args.model)))
    return 0
