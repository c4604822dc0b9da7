"""Memory that is free again, for the system."""

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Hand it back where the C library can, which keeps it otherwise: reading a model and each window leave holes."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library that is not GNU's
            ctypes.CDLL(None).malloc_trim(0)
