"""The reference's own calls, for scripts that were written for it.

``load`` gives what its ``load`` gives: model, tokenizer and front end; ``transcribe`` takes them back.
"""

import os
from collections.abc import Callable
from dataclasses import replace

from diffasr import SamplingOptions, Transcriber, loading
from diffasr.audio import Samples, Source, load_audio
from diffasr.model.loaded import Model
from diffasr.text import Tokenizer

FrontEnd = Callable[[Source], Samples]


def load(path: str | os.PathLike[str], *, device: str = "cpu") -> tuple[Model, Tokenizer, FrontEnd]:
    """A model, its tokenizer, and what turns a recording into samples.

    path: the reference's .pt file, a checkpoint folder, or a hub id. Raises ModelError, DownloadError, OptionError.
    """
    model = loading.load(path, device=device, precision="auto")
    return model, model.tokenizer, load_audio


def transcribe(wav: Source, model: Model, tok: Tokenizer, fe: FrontEnd, max_steps: int = 16) -> str:
    """The text of a recording; ``max_steps`` denoising steps a window at most."""
    return Transcriber(replace(model, tokenizer=tok)).transcribe(fe(wav), options=SamplingOptions(steps=max_steps)).text
