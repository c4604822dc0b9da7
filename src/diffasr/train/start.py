"""Where training starts: a checkpoint of ours, any multilingual Whisper, or a DiffusionGemma.

What it is stands in its config.json: ours names a backbone, the others a ``model_type``. A Whisper becomes a denoiser
with its own tokenizer, whole; one that is cut to some languages is made beforehand (recipes/mini/prepare.py).
"""

import json
import os
from pathlib import Path

import torch

from diffasr.errors import ModelError
from diffasr.model import checkpoint
from diffasr.model.hub import WHISPER_FILES, find
from diffasr.model.loaded import Model, Precision
from diffasr.model.placement import Target
from diffasr.text import Tokenizer

ENGLISH_ONLY = 51_864
"""Tokens of the Whispers that know English alone; all others have more."""


def start(init: str | os.PathLike[str], *, device: torch.device, precision: Precision, seed: int) -> Model:
    """The model that training begins with. What is new in it is drawn with ``seed``.

    init: a folder or a hub id. Raises ModelError, DownloadError, OptionError.
    """
    name = os.fspath(init)
    if Path(name).suffix == ".pt" or kind_of(name) == "diffasr":
        return checkpoint.load(name, device=str(device), precision=precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind_of(name) == "whisper":
            return _on(from_any_whisper(name), device, checkpoint.dtype_of(precision, device))
        return _from_gemma(name, device, precision)


def kind_of(name: str) -> str:
    """``diffasr``, ``whisper`` or ``diffusion_gemma``; raises ModelError for anything else."""
    place = find(name, files=("config.json",)) / "config.json"
    try:
        fields = json.loads(place.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{place} is not JSON: {error}") from error
    kind = "diffasr" if "backbone" in fields else fields.get("model_type")
    if kind not in ("diffasr", "whisper", "diffusion_gemma"):
        raise ModelError(f"{name} is a {kind!r} model: training starts from diffasr, whisper or diffusion_gemma")
    return str(kind)


def from_any_whisper(name: str) -> Model:
    """A Whisper of any size with its own tokenizer, as an untrained denoiser in float32. Raises ModelError for one
    that knows English alone: its tokenizer has no languages to choose from."""
    folder = find(name, files=(*WHISPER_FILES, "tokenizer.json"))
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if vocabulary == ENGLISH_ONLY:
        raise ModelError(f"{name} knows English alone ({vocabulary} tokens): take the multilingual one, without .en")
    tokenizer = Tokenizer.load(folder / "tokenizer.json", letters=checkpoint.PROJECTOR.letters)
    if tokenizer.size > vocabulary:
        raise ModelError(f"{name} has {vocabulary} embeddings and {tokenizer.size} tokens: its files do not fit")
    rows = [[token] for token in range(tokenizer.size)]
    return checkpoint.from_whisper(folder, tokenizer, rows, name=Path(name).name)


def _from_gemma(name: str, device: torch.device, precision: Precision) -> Model:
    """A new adapter on a DiffusionGemma, and Whisper-small to hear with."""
    from diffasr.model import adapter

    config, tokenizer = adapter.plan_adapter(name, adapter.WHISPER, name=Path(name).name)
    target = Target(device=device, dtype=checkpoint.dtype_of(precision, device), precision=precision)
    return adapter.placed(adapter.assemble(config, tokenizer, dtype=target.dtype), config, tokenizer, target)


def _on(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    model.module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return model
