"""``python -m diffasr`` is ``diffasr``."""

from diffasr.cli import main

if __name__ == "__main__":
    main()
