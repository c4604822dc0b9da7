"""``python -m diffasr`` is ``diffasr``."""

import sys

from diffasr.cli import main

if __name__ == "__main__":
    sys.exit(main())
