"""``diffasr train``: run a recipe."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffasr.errors import OptionError

if TYPE_CHECKING:
    from diffasr.cli import Commands


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    learn = commands.add_parser("train", help="run a training recipe; run again to go on")
    learn.add_argument("recipe", type=Path, help="a recipe.toml, or the folder that holds it")
    learn.add_argument("--out", type=Path, default=Path("runs/latest"), help="default: %(default)s")
    learn.add_argument("--init", metavar="MODEL", help="start from this instead of the recipe's init: a folder or hub "
                       "id of a diffasr, Whisper or DiffusionGemma model")  # fmt: skip
    learn.add_argument("--overfit", type=int, default=0, metavar="N", help="memorise the first N utterances")
    learn.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    learn.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, or go on with it; prints the folder of the result. 130: it was stopped before its end."""
    import torch

    from diffasr.train.loop import train
    from diffasr.train.stages import Recipe, place_of

    recipe = Recipe.load(args.recipe)
    if args.init:
        recipe = replace(recipe, init=place_of(Path(), args.init))
    if args.threads is not None:
        if args.threads < 1:
            raise OptionError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    result = train(recipe, args.out, overfit=args.overfit)
    if not result.is_dir():
        return 130
    print(result)
    return 0
