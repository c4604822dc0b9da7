"""Packages that others import by the way, kept aside until somebody asks for them.

transformers and peft import torchao and bitsandbytes wherever these are installed. That takes seconds and prints what
their builds miss on this machine. Only int8 and int4 of a gemma need them, and ``let_in`` is what those call first.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PACKAGES = ("torchao", "bitsandbytes")
_modules: dict[str, Any] = sys.modules  # None in it means to Python that there is no such package


@contextmanager
def kept_aside() -> Iterator[None]:
    """Where nobody finds PACKAGES, unless they are in use already; for a process of our own, such as a command."""
    names = [name for name in PACKAGES if name not in _modules]
    _modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            let_in(name)


def let_in(name: str) -> None:
    """From here on a package is found again."""
    if name in _modules and _modules[name] is None:
        del _modules[name]
