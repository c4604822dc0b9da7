"""How much memory a whisper backbone takes, of any size, before its weights are fetched. See plan.py.

Counted from shapes in the order in which layers.py and whisper.py make their tensors; attention keeps no scores, which
holds for torch's fused kernels.
"""

import json
import os

import torch

from diffasr.model import hub
from diffasr.model.checkpoint import PROJECTOR, build, whisper_config
from diffasr.model.config import DecoderConfig, ModelConfig
from diffasr.model.loaded import Precision
from diffasr.model.plan import EVIDENCE, Row, Weights, Work
from diffasr.model.whisper import WhisperNetwork
from diffasr.text import Tokenizer

PLAIN: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
"""Bytes a number. int8 is for CPUs: runtime."""
_FLOAT = 4
_FILES = ("config.json", "tokenizer.json")


def sketch(name: str | os.PathLike[str]) -> tuple[WhisperNetwork, ModelConfig]:
    """A checkpoint of ours, or a published Whisper as training would start from it, on the meta device.

    Only small files are read. Raises ModelError, DownloadError.
    """
    folder = hub.find(name, files=_FILES)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_ours = "backbone" in fields
    config = ModelConfig.from_json(json.dumps(fields)) if is_ours else None
    tokenizer = Tokenizer.load(
        folder / "tokenizer.json", letters=config.projector.letters if config else PROJECTOR.letters
    )
    config = config or whisper_config(fields, tokenizer, name=os.fspath(name))
    with torch.device("meta"):
        return build(config, tokenizer), config


def plan(network: WhisperNetwork, config: ModelConfig, work: Work) -> tuple[Row, ...]:
    """A row for each precision of PLAIN."""
    size = sum(p.numel() for p in network.parameters())
    logits = (1 + EVIDENCE) * work.rows * work.canvas * _text(config).vocabulary * _FLOAT
    return tuple(
        Row(precision=precision, weights=Weights(fixed=size * plain, layers=()),
            cache=cache_bytes(network, config, work, plain=plain), logits=logits,
            activations=max(hear_bytes(config, work, plain=plain), step_bytes(network, config, work, plain=plain)))
        for precision, plain in PLAIN.items()
    )  # fmt: skip


def cache_bytes(network: WhisperNetwork, config: ModelConfig, work: Work, *, plain: int) -> int:
    """What a prefill leaves behind: keys and values of the frames, audio tokens and their CTC logits."""
    text = _text(config)
    slots = int(network.projector.slots(torch.tensor(work.frames)))
    heard = 2 * text.layers * work.frames * text.width
    return work.rows * plain * (heard + slots * (text.width + len(network.alphabet)))


def hear_bytes(config: ModelConfig, work: Work, *, plain: int) -> int:
    """The largest moment of the encoder: a layer's MLP before and behind its curve, and what attention left."""
    ears = config.encoder
    return work.rows * work.frames * plain * (2 * ears.hidden + 5 * ears.width)


def step_bytes(network: WhisperNetwork, config: ModelConfig, work: Work, *, plain: int) -> int:
    """The largest moment of ``denoise``, without cache and the logits of the step before: masks being made, masks and
    the MLP of a layer, or logits."""
    text = _text(config)
    places = work.canvas + network.prefixes.shape[1] - 1
    masks = text.layers * text.heads * places**2
    layer = work.rows * places * plain * (2 * text.hidden + 7 * text.width)
    logits = work.rows * work.canvas * plain * (text.vocabulary + 2 * text.width)
    return max(masks * _FLOAT * (1 + work.rows), masks * work.rows * plain + layer, logits)


def _text(config: ModelConfig) -> DecoderConfig:
    assert isinstance(config.decoder, DecoderConfig)
    return config.decoder
