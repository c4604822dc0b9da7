"""``diffasr doctor``: is everything there, and what mends what isn't."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffasr.cli import Commands


def add(commands: "Commands") -> None:
    """The command's own arguments."""
    healer = commands.add_parser("doctor", help="check the install, and say what mends it")
    healer.add_argument("--model", default="mini", help="to try: mini, a folder, or a hub id (default: %(default)s)")
    healer.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table; exit code 1 if something that is needed does not work."""
    from diffasr.doctor import examine, render

    findings = examine(args.model, is_offline=args.offline)
    print(render(findings), end="")
    return 1 if any(finding.state == "broken" for finding in findings) else 0
