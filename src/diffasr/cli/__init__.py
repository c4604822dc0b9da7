"""The command line: ``parse`` turns words into arguments, each command's own module does what they say.

Exit codes: 0 all done, 1 some recording or step failed, 2 the call itself was wrong, 130 interrupted.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TypeAlias

from diffasr import __version__
from diffasr.cli import doctor, evaluate, importing, info, redo, train, transcribe
from diffasr.errors import DiffasrError, OptionError, RecipeError
from diffasr.model.aside import kept_aside

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the call; prints help or a usage error and leaves when that is what the call wants."""
    parser = argparse.ArgumentParser(prog="diffasr", description="Speech recognition by text diffusion.")
    parser.add_argument("--version", action="version", version=f"diffasr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (transcribe, redo, train, evaluate, info, importing, doctor):
        command.add(commands)
    for command_parser in commands.choices.values():
        command_parser.add_argument("--offline", action="store_true", help="use no network at all")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; returns the exit code. Raises DiffasrError for what cannot be done at all."""
    if args.offline:  # the hub's client reads it when it is imported, which no module has done yet
        os.environ["HF_HUB_OFFLINE"] = "1"
    with kept_aside():
        code: int = args.run(args)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: errors of ours, and of files that can't be read or written, become one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that it can't spell ends no batch
    args = parse(argv)
    try:
        return run(args)
    except (OptionError, RecipeError) as error:
        print(f"diffasr: {error}", file=sys.stderr)
        return 2
    except DiffasrError as error:
        print(f"diffasr: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is not None:
            print(f"diffasr: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        if error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        sys.stdout = None  # what it still holds can't be written either
        print(f"diffasr: the output can't be written: {error.strerror}; make room and call again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("diffasr: interrupted", file=sys.stderr)
        return 130
