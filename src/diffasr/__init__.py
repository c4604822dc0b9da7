"""diffasr: speech recognition by text diffusion."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffasr.diffusion.options import SamplingOptions
    from diffasr.errors import (
        AudioError,
        DiffasrError,
        DownloadError,
        ManifestError,
        ModelError,
        OptionError,
        RecipeError,
    )
    from diffasr.transcribe import Transcriber, load
    from diffasr.transcript import Segment, Transcript, Word

__version__ = "0.1.0"

__all__ = [
    "AudioError",
    "DiffasrError",
    "DownloadError",
    "ManifestError",
    "ModelError",
    "OptionError",
    "RecipeError",
    "SamplingOptions",
    "Segment",
    "Transcriber",
    "Transcript",
    "Word",
    "__version__",
    "load",
]

_HOMES = {
    "SamplingOptions": "diffusion.options",
    "Segment": "transcript",
    "Transcriber": "transcribe",
    "Transcript": "transcript",
    "Word": "transcript",
    "load": "transcribe",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, ``diffasr --help`` must not."""
    if name not in __all__:
        raise AttributeError(f"module 'diffasr' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diffasr.{_HOMES.get(name, 'errors')}"), name)
