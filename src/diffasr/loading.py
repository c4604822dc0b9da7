"""A name in, a model out: which network runs it is decided here.

A whisper backbone on a CPU is run by ``runtime``, without torch, where its decoder can be; everything else is torch's.
"""

import os
from pathlib import Path

from diffasr.errors import OptionError
from diffasr.letters import NAMES, Letters
from diffasr.model import hub
from diffasr.model.config import DecoderConfig, ModelConfig
from diffasr.model.loaded import Model, Precision
from diffasr.runtime.graph import reach
from diffasr.runtime.network import RuntimeNetwork, is_int8, why_not
from diffasr.runtime.shapes import check
from diffasr.runtime.weights import Weights
from diffasr.text import Tokenizer


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "cpu",
    revision: str | None = None,
    precision: Precision = "auto",
    gpu_memory: float | None = None,
    threads: int | None = None,
) -> Model:
    """Load a checkpoint for inference.

    name: "mini", a folder, a hub id, or the reference's .pt file. precision: see Precision. gpu_memory: GiB of each
    card, to lay a gemma over all cards and, where these are too small, the host. threads: of the CPU; None: one a core.
    Raises ModelError, DownloadError, OptionError.
    """
    is_here = device in ("cpu", "cpu:0") and gpu_memory is None
    if is_here and precision in ("auto", "int8") and Path(name).suffix != ".pt":
        folder = hub.find(name, revision=revision)
        found = _without_torch(folder, precision, threads)
        if found is not None:
            return found
    import torch

    from diffasr.model import checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    return checkpoint.load(name, device=device, revision=revision, precision=precision, gpu_memory=gpu_memory)


def _without_torch(folder: Path, precision: Precision, threads: int | None) -> Model | None:
    """None where torch is needed; raises OptionError where int8 was asked for and can't be."""
    if not (folder / "model.safetensors").is_file():
        return None
    config = ModelConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config.decoder, DecoderConfig):
        return None
    weights = Weights(folder / "model.safetensors")
    problem = why_not(weights, config)
    if precision == "int8":
        problem = problem or ("" if is_int8(weights) else "its file is not in int8: export it")
        if problem:
            raise OptionError(f"{config.name} can't be run in int8, {problem}; or leave precision at auto")
    if problem:
        return None
    tokenizer = Tokenizer.load(folder / "tokenizer.json", letters=config.projector.letters)
    config.decoder.check(tokenizer.size)
    check(weights, config, len(tokenizer.alphabet))
    network = RuntimeNetwork(weights, config, tokenizer, threads=threads or cores(), reach=reach())
    letters = Letters.from_state({name: weights.read(name) for name in NAMES if name in weights})
    return Model(network=network, tokenizer=tokenizer, config=config, letters=letters)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_config(name: str | os.PathLike[str], *, revision: str | None = None) -> ModelConfig:
    """The config of a checkpoint, named as in ``load``; of a hub repository no weights are fetched."""
    folder = hub.find(name, revision=revision, files=hub.FILES[:1])
    return ModelConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
