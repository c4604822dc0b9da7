"""``diffasr info``: what is inside a model, under which licences, and what memory it takes.

``26b`` is the full-size system as it would be trained; the reference's repository holds the same sizes in a file of its
own, which is not fetched for this.
"""

import argparse
from typing import TYPE_CHECKING

from diffasr.errors import OptionError

if TYPE_CHECKING:
    from diffasr.cli import Commands
    from diffasr.model.config import ModelConfig
    from diffasr.model.plan import Row, Work


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    about = commands.add_parser("info", help="what is inside a model, and what fits a GPU")
    about.add_argument("model", nargs="?", default="mini", help="mini, 26b, a folder or a hub id (default: mini)")
    about.add_argument("--plan", action="store_true", help="tell which precision fits; of a Whisper of any size too")
    about.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of a card (default: %(default)g)")
    about.add_argument("--gpus", type=int, default=1, help="cards (default: %(default)s)")
    about.add_argument("--batch", type=int, default=4, help="windows of 30 s at once (default: %(default)s)")
    about.add_argument("--canvas", type=int, default=192, help="places of a canvas (default: %(default)s)")
    about.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from diffasr.model import info
    from diffasr.model.checkpoint import load

    try:
        if args.plan:
            print(_plan(args))
            return 0
        config = _config(args.model)
        if config.backbone == "gemma":
            print(info.render(info.describe(config)))
        else:
            print(info.summary(load(args.model)))
    except ImportError as error:
        raise OptionError(f"this model needs more packages ({error}): pip install 'diffasr[gemma]'") from error
    print(info.licences(None if args.model == "26b" else args.model, config))
    return 0


def _config(model: str) -> "ModelConfig":
    from diffasr.loading import read_config
    from diffasr.model import hub, info

    return info.config_26b() if model in ("26b", hub.REFERENCE) else read_config(model)


def _plan(args: argparse.Namespace) -> str:
    from diffasr.model.plan import Work, render

    work = Work(rows=args.batch, canvas=args.canvas)
    return render(_rows(args.model, work), work, gpu_memory=args.gpu_memory, gpus=args.gpus)


def _rows(model: str, work: "Work") -> "tuple[Row, ...]":
    from diffasr.model import hub, plan_whisper
    from diffasr.train.start import kind_of

    is_published_whisper = model not in ("26b", hub.REFERENCE) and kind_of(model) == "whisper"
    if is_published_whisper or _config(model).backbone == "whisper":
        network, config = plan_whisper.sketch(model)
        return plan_whisper.plan(network, config, work)
    from diffasr.model.adapter import sketch
    from diffasr.model.plan import plan

    return plan(sketch(_config(model)), work)
