"""A gemma checkpoint: projector and LoRA here, language model and ear in repositories of their own.

The folder has the same three files as any other. model.safetensors holds the projector as ``projector.…`` and each LoRA
matrix under peft's name without the adapter's; the tokenizer is the language model's, with a few tokens renamed.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn

from diffasr.errors import ModelError
from diffasr.model.checkpoint import build_encoder, build_projector, compare, ears_of, fit, read_weights
from diffasr.model.config import GemmaConfig, ModelConfig, ProjectorConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import GEMMA, GemmaNetwork, Prompt, add_lora, load_backbone, sketch_backbone
from diffasr.model.hub import WHISPER_FILES, find
from diffasr.model.loaded import Model
from diffasr.model.placement import Target, cards, place_
from diffasr.model.plan import homes
from diffasr.model.precision import shrink_
from diffasr.text import END, LANGUAGES, PLAIN, PREFIX_TOKENS, START, TASK, Tokenizer

WHISPER = "openai/whisper-small"
PROJECTOR = ProjectorConfig(hidden=1408, strides=3)
"""1500 frames to 188 audio tokens."""
BEFORE = "Write down what is said in this recording:"
AFTER = "\nThe language is"
RENAMED = {
    END: "<pad>",
    START: "<bos>",
    TASK: "<unused0>",
    PLAIN: "<unused1>",
    **{f"<|{code}|>": f"<unused{n}>" for n, code in enumerate(LANGUAGES, start=2)},
}
"""Our special tokens, and the tokens of Gemma that take their names. Ids stay, and so does every text."""
_ADAPTER = ".default"
"""What peft adds to the names of its first adapter."""


def load(folder: Path, config: ModelConfig, target: Target) -> Model:
    """A gemma checkpoint ready for inference; its language model and its ear come from where ``config`` says.

    Raises ModelError, DownloadError, OptionError.
    """
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    network = assemble(config, tokenizer, dtype=target.dtype)
    put(network, read_weights(folder / "model.safetensors"), source=str(folder))
    return placed(network, config, tokenizer, target)


def placed(network: GemmaNetwork, config: ModelConfig, tokenizer: Tokenizer, target: Target) -> Model:
    """A network from ``assemble`` quantised where that is asked for, frozen, and where ``target`` wants it.

    Raises OptionError where it does not fit.
    """
    where = None if target.gpu_memory is None else homes(network, target)
    first = target.device if where is None else cards(target.device)[0]
    shrink_(network.backbone, target.precision, first, where)
    for part in (network.encoder, network.projector):
        part.to(dtype=target.dtype)  # and not the backbone: its rotary frequencies stay float32
    network.eval().requires_grad_(False)
    if where is None:
        network.to(first)
    else:
        place_(network, first, where)
    return Model(network=network, tokenizer=tokenizer, config=config)


def assemble(config: ModelConfig, tokenizer: Tokenizer, *, dtype: torch.dtype) -> GemmaNetwork:
    """Language model and ear from their repositories, with a new projector and LoRA without effect, on the CPU."""
    backbone = load_backbone(_gemma(config).source, revision=_gemma(config).revision, dtype=dtype)
    return join(config, tokenizer, backbone, load_ear(config))


def sketch(config: ModelConfig) -> GemmaNetwork:
    """The network on the meta device: shapes without weights."""
    gemma = _gemma(config)
    backbone = sketch_backbone(gemma.source, revision=gemma.revision)
    add_lora(backbone, gemma.rank, gemma.alpha)
    with torch.device("meta"):
        encoder = build_encoder(config)
        projector = build_projector(config, backbone.config.get_text_config().hidden_size)
    prompt = Prompt(before=gemma.before, after=gemma.after, languages=gemma.languages, end=0)
    return GemmaNetwork(encoder, projector, backbone, prompt)


def join(config: ModelConfig, tokenizer: Tokenizer, backbone: Any, encoder: WhisperEncoder) -> GemmaNetwork:
    """A network of a bare language model and an ear; raises ModelError where config and tokenizer do not fit."""
    gemma, bridge = _gemma(config), config.projector
    text = backbone.config.get_text_config()
    if tokenizer.size != text.vocab_size:
        raise ModelError(f"the tokenizer has {tokenizer.size} tokens, {gemma.source} has {text.vocab_size}")
    if bridge.letters:
        raise ModelError(f"letters is {bridge.letters}: CTC of a gemma goes through its whole vocabulary, set 0")
    if len(gemma.languages) != len(LANGUAGES):
        raise ModelError(f"config.json names {len(gemma.languages)} language tokens; there are {len(LANGUAGES)}")
    add_lora(backbone, gemma.rank, gemma.alpha)
    prompt = Prompt(before=gemma.before, after=gemma.after, languages=gemma.languages, end=tokenizer.end)
    return GemmaNetwork(encoder, build_projector(config, text.hidden_size), backbone, prompt)


def load_ear(config: ModelConfig) -> WhisperEncoder:
    """The frozen encoder of the Whisper that ``config`` names, in float32."""
    gemma = _gemma(config)
    folder = find(gemma.whisper, revision=gemma.whisper_revision, files=WHISPER_FILES)
    with torch.device("meta"):
        encoder = build_encoder(config)
    stored = {name.removeprefix("model."): v for name, v in load_file(folder / "model.safetensors").items()}
    weights = {n.removeprefix("encoder."): v.float() for n, v in stored.items() if n.startswith("encoder.")}
    fit(encoder, weights, source=str(folder))
    return encoder


def adapter(network: nn.Module) -> dict[str, Tensor]:
    """What is trained, by its name in the file."""
    return {
        name.replace(_ADAPTER, ""): value
        for name, value in network.state_dict().items()
        if name.startswith("projector.") or ".lora_" in name
    }


def put(network: GemmaNetwork, weights: dict[str, Tensor], *, source: str) -> None:
    """Copy ``weights``, named as ``adapter`` names them, into ``network``; raises ModelError where they don't fit."""
    own = adapter(network)
    compare(own, weights, source=source)
    for name, value in own.items():
        value.copy_(weights[name])


def from_gemma(
    source: str | os.PathLike[str] = GEMMA,
    whisper: str | os.PathLike[str] = WHISPER,
    *,
    name: str,
    projector: ProjectorConfig = PROJECTOR,
    rank: int = 16,
    dtype: torch.dtype = torch.bfloat16,
) -> Model:
    """An untrained adapter on a DiffusionGemma, its prompt in plain words: where training starts.

    source, whisper: folders in transformers' layout or hub ids.
    """
    config, tokenizer = plan_adapter(source, whisper, name=name, projector=projector, rank=rank)
    return Model(network=assemble(config, tokenizer, dtype=dtype), tokenizer=tokenizer, config=config)


def plan_adapter(
    source: str | os.PathLike[str],
    whisper: str | os.PathLike[str],
    *,
    name: str,
    projector: ProjectorConfig = PROJECTOR,
    rank: int = 16,
    alpha: int | None = None,
) -> tuple[ModelConfig, Tokenizer]:
    """Config and tokenizer of an adapter; of the repositories only small files are read."""
    tokenizer = rename(find(source, files=("tokenizer.json",)) / "tokenizer.json")
    sizes: dict[str, Any] = json.loads((find(whisper, files=("config.json",)) / "config.json").read_text("utf-8"))
    gemma = GemmaConfig(
        source=os.fspath(source),
        whisper=os.fspath(whisper),
        before=(tokenizer.start, *tokenizer.encode(BEFORE)),
        after=tuple(tokenizer.backend.encode(AFTER, add_special_tokens=False).ids),
        languages=tuple(language_tokens(tokenizer)),
        rank=rank,
        alpha=2 * rank if alpha is None else alpha,
    )
    return ModelConfig(name=name, encoder=ears_of(sizes, "whole"), projector=projector, decoder=gemma), tokenizer


def language_tokens(tokenizer: Tokenizer) -> Sequence[int]:
    """A token for each language: the first of its name, which a language model knows, where no two share it."""
    firsts = [tokenizer.backend.encode(f" {name}", add_special_tokens=False).ids[:1] for name in LANGUAGES.values()]
    found = [ids[0] for ids in firsts if ids]
    return found if len(set(found)) == len(LANGUAGES) else [tokenizer.languages[code] for code in LANGUAGES]


def rename(path: Path) -> Tokenizer:
    """A tokenizer of Gemma under the names that ours has for special tokens; one that has them stays as it is.

    Raises ModelError where a token of RENAMED is not there.
    """
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = {token["content"] for token in spec["added_tokens"]} | set(spec["model"]["vocab"])
    if not set(PREFIX_TOKENS) <= known:
        missing = [token for token in RENAMED.values() if token not in known]
        if missing:
            raise ModelError(f"{path} has no token {', '.join(missing)}: it is not Gemma's")
        ours = {theirs: name for name, theirs in RENAMED.items()}
        vocabulary: dict[str, int] = spec["model"]["vocab"]
        spec["model"]["vocab"] = {ours.get(token, token): number for token, number in vocabulary.items()}
        numbers = {name: spec["model"]["vocab"].get(name) for name in RENAMED}
        for token in spec["added_tokens"]:
            token["content"] = ours.get(token["content"], token["content"])
        added = {token["content"] for token in spec["added_tokens"]}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        spec["added_tokens"] += [
            {"id": numbers[name], "content": name, "special": True, **flags} for name in RENAMED if name not in added
        ]
        for token in spec["added_tokens"]:
            token["special"] |= token["content"] in RENAMED
        spec["added_tokens"].sort(key=lambda token: token["id"])
        spec["post_processor"] = None  # it would begin each text with a token of the old name
    return Tokenizer(Backend.from_str(json.dumps(spec)))


def _gemma(config: ModelConfig) -> GemmaConfig:
    if not isinstance(config.decoder, GemmaConfig):
        raise ModelError(f"{config.name} has a {config.backbone} backbone, not gemma")
    return config.decoder
