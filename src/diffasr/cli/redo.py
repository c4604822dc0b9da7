"""``diffasr redo``: put words of a transcript right, and have the rest of their segments written anew around them."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from diffasr.errors import OptionError
from diffasr.formats import FORMATS

if TYPE_CHECKING:
    from diffasr.cli import Commands
    from diffasr.redo import Keep
    from diffasr.transcript import Transcript

_FIX = re.compile(r"(\d+):(\d+)(?:-(\d+))?(?:=(.*))?", re.DOTALL)


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    mend = commands.add_parser("redo", help="write segments anew around words that you put right")
    mend.add_argument("transcript", type=Path, metavar="FILE.json", help="what diffasr transcribe --format json wrote")
    mend.add_argument("--audio", metavar="FILE", help="the recording that it is of")
    mend.add_argument(
        "--set", dest="fixes", action="append", default=[], metavar="S:W=TEXT",
        help="word W of segment S is TEXT; S:V-W=TEXT: words V to W are; S:W: it is right as it stands. Without any "
        "the words are listed with their numbers",
    )  # fmt: skip
    mend.add_argument("--output", type=Path, metavar="FILE", help="write here, whole or not at all (default: screen)")
    mend.add_argument("--format", choices=FORMATS, default="json", help="of the new transcript (default: %(default)s)")
    mend.add_argument("--model", default="mini", help="mini, a checkpoint folder, or a hub id (default: %(default)s)")
    mend.add_argument("--steps", type=int, default=8, help="steps a segment, at most (default: %(default)s)")
    mend.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    mend.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List the words, or write the new transcript."""
    result = _read(args.transcript)
    if not args.fixes:
        for number, segment in enumerate(result.segments):
            print(*(f"{number}:{n}={word.word}" for n, word in enumerate(segment.words)))
        return 0
    if args.audio is None:
        raise OptionError(f"--audio is missing: give the recording that {args.transcript} is of")
    keep = _keep(args.fixes, result)

    from diffasr.formats import render, write_text_atomically
    from diffasr.transcribe import load

    asr = load(args.model, device=args.device)
    text = render(asr.redo(result, args.audio, keep=keep, steps=args.steps), args.format)
    if args.output is None:
        print(text, end="")
    else:
        write_text_atomically(args.output, text)
    return 0


def _read(path: Path) -> "Transcript":
    from diffasr.transcript import Transcript

    try:
        return Transcript.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OptionError(
            f"{path} can't be read as JSON: {error}; diffasr transcribe --format json writes it"
        ) from error


def _keep(fixes: list[str], result: "Transcript") -> "Keep":
    """What ``--set`` says, as ``Transcriber.redo`` takes it; raises OptionError."""
    keep: dict[tuple[int, int] | tuple[int, int, int], str] = {}
    for fix in fixes:
        match = _FIX.fullmatch(fix)
        if match is None:
            raise OptionError(f"--set {fix!r} is not of the form 0:3=TEXT, 0:3-4=TEXT or 0:3")
        number, first = int(match[1]), int(match[2])
        last = first if match[3] is None else int(match[3])
        if match[4] is not None:
            if (number, first, last) in keep:
                raise OptionError(f"--set {fix}: {number}:{first} is set twice: keep one of the two")
            keep[number, first, last] = match[4]
            continue
        words = result.segments[number].words[first : last + 1] if number < len(result.segments) else ()
        for n, word in enumerate(words, first):
            keep[number, n] = word.word
        if len(words) != last + 1 - first or not words:
            raise OptionError(f"--set {fix}: the transcript has no such word; without --set the words are listed")
    return keep
