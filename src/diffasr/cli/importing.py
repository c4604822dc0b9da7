"""``diffasr import``: the reference's weight file in, a checkpoint folder out."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffasr.errors import OptionError

if TYPE_CHECKING:
    from diffasr.cli import Commands


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    bring = commands.add_parser("import", help="turn the reference's diffusion_asr_small.pt into a checkpoint")
    bring.add_argument("file", type=Path, metavar="FILE.pt", help="the reference's weights")
    bring.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint")
    bring.add_argument("--gemma", metavar="MODEL", help="folder or hub id of the language model (default: the 26 B)")
    bring.add_argument("--whisper", metavar="MODEL", help="folder or hub id of the ear (default: whisper-small)")
    bring.add_argument("--alpha", type=int, help="of LoRA (default: as the file says, else twice the rank)")
    bring.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Match, write, and show which tensor became what."""
    if args.alpha is not None and args.alpha < 1:
        raise OptionError(f"--alpha must be 1 or more, got {args.alpha}")
    try:
        from diffasr.model import adapter, gemma, reference
    except ImportError as error:
        raise OptionError(f"import needs more packages ({error}): pip install 'diffasr[gemma]'") from error
    from diffasr.model.checkpoint import write

    config, tokenizer, found = reference.convert(
        args.file, source=args.gemma or gemma.GEMMA, whisper=args.whisper or adapter.WHISPER, alpha=args.alpha
    )
    print(found.table)
    if args.alpha is None and found.alpha is None:
        print(f"diffasr: the file does not say LoRA's alpha: took {2 * found.rank}, see --alpha", file=sys.stderr)
    write(args.out, found.weights, config, tokenizer)
    print(f"{args.file} -> {args.out}: {len(found.weights)} tensors", file=sys.stderr)
    return 0
