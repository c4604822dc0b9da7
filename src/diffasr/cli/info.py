"""``diffasr info``: what is inside a model, under which licences, and what memory it takes."""

import argparse
from typing import TYPE_CHECKING

from diffasr.errors import OptionError

if TYPE_CHECKING:
    from diffasr.cli import Commands
    from diffasr.model.config import ModelConfig


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    about = commands.add_parser("info", help="what is inside a model, and what fits a GPU")
    about.add_argument("model", nargs="?", default="mini", help="mini, 26b, a folder or a hub id (default: mini)")
    about.add_argument("--plan", action="store_true", help="tell which precision fits (gemma models)")
    about.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of a card (default: %(default)g)")
    about.add_argument("--gpus", type=int, default=1, help="cards (default: %(default)s)")
    about.add_argument("--batch", type=int, default=1, help="windows of 30 s at once (default: %(default)s)")
    about.add_argument("--canvas", type=int, default=192, help="places of a canvas (default: %(default)s)")
    about.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from diffasr.model import info
    from diffasr.model.checkpoint import load, read_config

    try:
        config = info.config_26b() if args.model == "26b" else read_config(args.model)
        if args.plan:
            print(_plan(config, args))
            return 0
        if config.backbone == "gemma":
            print(info.render(info.describe(config)))
        else:
            print(info.summary(load(args.model)))
    except ImportError as error:
        raise OptionError(f"this model needs more packages ({error}): pip install 'diffasr[gemma]'") from error
    print(info.licences(None if args.model == "26b" else args.model, config))
    return 0


def _plan(config: "ModelConfig", args: argparse.Namespace) -> str:
    if config.backbone != "gemma":
        raise OptionError(f"--plan is for gemma models, such as 26b; {config.name} has a {config.backbone} backbone")
    from diffasr.model.plan import Work, plan, render

    work = Work(rows=args.batch, canvas=args.canvas)
    return render(plan(config, work), work, gpu_memory=args.gpu_memory, gpus=args.gpus)
