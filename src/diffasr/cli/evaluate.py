"""``diffasr evaluate`` decodes and scores; ``diffasr score`` scores again."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffasr.errors import OptionError

if TYPE_CHECKING:
    from diffasr.cli import Commands
    from diffasr.evaluate.against import Standard


def add(commands: "Commands") -> None:
    """The commands that measure: ``evaluate`` decodes and scores, ``score`` scores again."""
    judge = commands.add_parser("evaluate", help="error rates and speed of every decoder of a model, with a report")
    judge.add_argument("sets", nargs="+", metavar="SET", help="NeMo JSON lines, e.g. hf:fleurs:de:test, or quiet:10")
    judge.add_argument("--model", default="mini", help="mini, a checkpoint folder, or a hub id (default: %(default)s)")
    judge.add_argument(
        "--decoders",
        type=_words,
        default=("ctc", "ar", "diffusion", "seeded"),
        metavar="NAME,…",
        help="of ctc, ctc_beam (with letters), ar, ar_ctc (with CTC and letters), diffusion (from noise), seeded (from "
        "CTC's text), vote; default: ctc,ar,diffusion,seeded",
    )
    judge.add_argument("--steps", type=_numbers, default=(8,), metavar="N,…", help="denoising steps (default: 8)")
    judge.add_argument("--seeds", type=int, default=1, help="runs of each random decoder (default: %(default)s)")
    judge.add_argument("--votes", type=int, default=3, help="canvases of the decoder vote (default: %(default)s)")
    judge.add_argument(
        "--vary",
        type=_varied,
        action="append",
        default=[],
        metavar="OPTION=X,…",
        help="run diffusion decoders with each value of a sampling option, e.g. start=ctc,sample; may be given again",
    )
    judge.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="whisper:MODEL[:ct2]",
        help="a Whisper on the same audio; may be given again",
    )
    judge.add_argument("--beams", type=_numbers, default=(1,), metavar="N,…", help="of baselines (default: 1)")
    judge.add_argument(
        "--normaliser", default="basic", help="basic, cased, whisper, leaderboard, none (default: %(default)s)"
    )
    judge.add_argument("--batch", type=int, default=1, help="recordings decoded together (default: %(default)s)")
    judge.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    judge.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    judge.add_argument("--find-language", action="store_true", help="do not tell the systems the language")
    judge.add_argument("--no-vad", dest="vad", action="store_false", help="long and quiet sounds without the detector")
    judge.add_argument("--limit", type=int, help="recordings of each language (default: all)")
    judge.add_argument("--out", type=Path, default=Path("runs/evaluation"), metavar="DIR",
                       help="rows, report and plots; run again to go on (default: %(default)s)")  # fmt: skip
    _add_judgement(judge)
    judge.set_defaults(run=_evaluate)

    score = commands.add_parser("score", help="score the raw rows of an evaluation again, without decoding")
    score.add_argument("rows", type=Path, metavar="DIR_OR_JSONL", help="what `evaluate` wrote")
    score.add_argument(
        "--normaliser", default="basic", help="basic, cased, whisper, leaderboard, none (default: %(default)s)"
    )
    score.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two systems: paired difference, worst recordings"
    )
    score.add_argument("--out", type=Path, metavar="DIR", help="write report and plots here as well")
    _add_judgement(score)
    score.set_defaults(run=_score)


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


def _varied(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no option with its values, such as votes=1,3,5")
    return name.strip().replace("-", "_"), _words(values)


def _evaluate(args: argparse.Namespace) -> int:
    from diffasr.evaluate.page import render
    from diffasr.evaluate.report import write_report
    from diffasr.evaluate.run import evaluate
    from diffasr.evaluate.systems import EvaluationOptions

    options = EvaluationOptions(
        decoders=args.decoders, steps=args.steps, seeds=args.seeds, votes=args.votes, baselines=args.baseline,
        beams=args.beams, normaliser=args.normaliser, batch=args.batch, threads=args.threads, device=args.device,
        find_language=args.find_language, limit=args.limit, vad=args.vad, vary=tuple(args.vary),
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
