"""``diffasr info``: what is inside a model."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffasr.cli import Commands


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    about = commands.add_parser("info", help="what is inside a model")
    about.add_argument("model", nargs="?", default="mini", help="mini, 26b, a folder or a hub id (default: mini)")
    about.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    if args.model == "26b":
        from diffasr.model.info import describe_26b, render

        print(render(describe_26b()))
        return 0
    from diffasr.model.checkpoint import load, summary

    print(summary(load(args.model)))
    return 0
