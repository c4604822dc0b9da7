"""Folders in, models out, and back. Device and precision are decided here and nowhere else.

A checkpoint is config.json + model.safetensors + tokenizer.json. Matrices may be stored as int8 with one float16 scale
a row (``name`` and ``name.scale``): a quarter of the size, read back to float32 here, and used as they are in
``runtime``. A gemma checkpoint holds an adapter alone: see adapter.py.
"""

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffasr.errors import ModelError, OptionError
from diffasr.letters import NAMES, Letters
from diffasr.model import hub
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.loaded import Model, Precision
from diffasr.model.placement import Target, cards
from diffasr.model.projector import Projector
from diffasr.model.stored import Stored, floats, quantise
from diffasr.model.whisper import WhisperDecoder, WhisperNetwork
from diffasr.text import LANGUAGES, Tokenizer

FILES = hub.FILES
find = hub.find
PROJECTOR = ProjectorConfig(hidden=768, strides=1, steady=1, layers=2, letters=2)
"""What a Whisper is given to become ours: 25 audio tokens a second, and CTC labels of two letters."""
_GONE = "decoder.drafter."
"""Weights that older checkpoints hold and nobody asks any more, so that they load."""


def build(config: ModelConfig, tokenizer: Tokenizer) -> WhisperNetwork:
    """A whisper network with random weights; raises ModelError when config and tokenizer do not fit."""
    if not isinstance(config.decoder, DecoderConfig):
        raise ModelError(
            f"{config.name} has a {config.backbone} backbone: its network is built by diffasr.model.adapter"
        )
    config.decoder.check(tokenizer.size)
    text = config.decoder
    encoder = build_encoder(config)
    projector = build_projector(config, text.width)
    decoder = WhisperDecoder(
        vocabulary=text.vocabulary, width=text.width, heads=text.heads, layers=text.layers, hidden=text.hidden,
        positions=text.positions,
    )  # fmt: skip
    prefixes = torch.tensor([tokenizer.prefix(code) for code in LANGUAGES])
    return WhisperNetwork(encoder, projector, decoder, prefixes, torch.tensor(tokenizer.alphabet))


def build_encoder(config: ModelConfig) -> WhisperEncoder:
    """The ear, untouched by any weights."""
    ears = config.encoder
    return WhisperEncoder(
        mels=ears.mels, width=ears.width, heads=ears.heads, layers=ears.layers, hidden=ears.hidden,
        positions=ears.positions,
    )  # fmt: skip


def build_projector(config: ModelConfig, width: int) -> Projector:
    """The bridge from the ear to a language model of ``width``; what is not in its ``norms`` does nothing."""
    bridge = config.projector
    made = Projector(
        speech_width=config.encoder.width, hidden=bridge.hidden, width=width, strides=bridge.strides,
        steady=bridge.steady, layers=bridge.layers,
    )  # fmt: skip
    for name in {"norm", "out_norm"} - set(bridge.norms):
        setattr(made, name, torch.nn.Identity())
    return made


def load(
    name: str | os.PathLike[str],
    *,
    device: str = "cpu",
    revision: str | None = None,
    precision: Precision = "full",
    gpu_memory: float | None = None,
) -> Model:
    """Load a checkpoint for inference or as the start of a training.

    name: "mini", a folder, a hub id, or the reference's .pt file. precision: see Precision; int4 is for gemma.
    gpu_memory: GiB of each card, to lay a gemma over all cards and, where these are too small, the host.
    Raises ModelError, DownloadError, OptionError.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch knows the name but not the hardware, or neither
        raise OptionError(f"device {device!r} can't be used here: {str(error).splitlines()[0]}; try cpu") from error
    place = torch.device(device)
    if gpu_memory is not None:
        cards(place)  # so that 49 GB are not read in vain
    target = Target(device=place, dtype=dtype_of(precision, place), precision=precision, gpu_memory=gpu_memory)
    if Path(name).suffix == ".pt":
        return _gemma_part("reference").load(Path(name), target)
    folder = find(name, revision=revision)
    if not (folder / "model.safetensors").is_file():
        return _gemma_part("reference").load(folder / hub.REFERENCE_FILE, target)
    config = ModelConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    if config.backbone == "gemma":
        return _gemma_part("adapter").load(folder, config, target)
    if gpu_memory is not None:
        raise OptionError(f"gpu_memory lays a gemma over cards; {config.name} has a whisper backbone: leave it out")
    if precision == "int4":
        raise OptionError("precision int4 is for a gemma backbone: try auto")
    if precision == "int8":
        raise OptionError(f"a whisper backbone in int8 runs without torch, on a CPU, not here on {device}: try auto")
    tokenizer = Tokenizer.load(folder / "tokenizer.json", letters=config.projector.letters)
    with torch.device("meta"):
        network = build(config, tokenizer)
    network.prefixes = torch.tensor([tokenizer.prefix(code) for code in LANGUAGES])
    network.alphabet = torch.tensor(tokenizer.alphabet)
    stored = Stored(folder / "model.safetensors")
    letters = Letters.from_state({name: stored.pop(name).numpy() for name in NAMES if name in stored.names})
    weights = {name: value for name, value in floats(stored).items() if not name.startswith(_GONE)}
    fit(network, weights, source=str(folder))
    network.to(device=place, dtype=target.dtype)
    _give_back()
    return Model(network=network.eval().requires_grad_(False), tokenizer=tokenizer, config=config, letters=letters)


def _give_back() -> None:
    """Hand the memory that is free again back to the system, where the C library can: reading leaves many holes."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library that is not GNU's
            ctypes.CDLL(None).malloc_trim(0)


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """What numbers are computed in; raises OptionError for a precision that is none."""
    match precision:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto" | "full" | "int8" | "int4":
            return torch.float32 if device.type == "cpu" else torch.bfloat16
    raise OptionError(f"precision {precision!r} is not one of auto, full, float32, bfloat16, int8, int4")


def _gemma_part(name: Literal["adapter", "reference"]) -> Any:
    """A module that needs the packages of the gemma extra."""
    try:
        return import_module(f"diffasr.model.{name}")
    except ImportError as error:
        raise OptionError(f"a gemma backbone needs more packages ({error}): pip install 'diffasr[gemma]'") from error


def fit(network: torch.nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Put ``weights`` into ``network`` (no copy); raises ModelError with a table of what does not fit."""
    compare(network.state_dict(), weights, source=source)
    network.load_state_dict(weights, assign=True)


def compare(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, source: str) -> None:
    """Raise ModelError with a table of names and shapes in which the two differ, if they do."""
    problems = [f"  missing {k} {tuple(v.shape)}" for k, v in wanted.items() if k not in weights]
    problems += [f"  unknown {k} {tuple(v.shape)}" for k, v in weights.items() if k not in wanted]
    problems += [
        f"  {k} is {tuple(weights[k].shape)}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        raise ModelError(f"the weights in {source} do not fit their config:\n" + "\n".join(problems[:20]))


def save(
    folder: str | os.PathLike[str], model: Model, *, precision: Literal["float32", "float16", "int8"] = "float32"
) -> None:
    """Write a checkpoint folder; what was there before under the same names is replaced, each file whole.

    Of a gemma model the adapter is written, not the language model. int8: the matrices of all layers, the convolutions
    behind the first and the token embedding; everything else is float16 then.
    """
    weights: dict[str, Tensor] = {}
    is_gemma = model.config.backbone == "gemma"
    state = _gemma_part("adapter").adapter(model.module) if is_gemma else model.module.state_dict()
    for name, value in state.items():
        if precision == "int8" and _is_large(name, value):
            weights[name], weights[f"{name}.scale"] = quantise(value)
        else:
            weights[name] = value.to(torch.float32 if precision == "float32" else torch.float16).contiguous()
    known = model.letters.state() if model.letters else {}
    letters = {name: torch.from_numpy(value) for name, value in known.items()}
    write(folder, weights | letters, model.config, model.tokenizer)


def _is_large(name: str, value: Tensor) -> bool:
    """Whether it is worth storing in int8: all that runs in int8 but what is small."""
    if value.ndim == 3:
        return name.startswith(("encoder.conv2.", "projector.convs."))
    named = ".layers." in name or name == "decoder.embed_tokens.weight"
    return named and value.ndim == 2


def write(
    folder: str | os.PathLike[str], weights: dict[str, Tensor], config: ModelConfig, tokenizer: Tokenizer
) -> None:
    """The three files of a checkpoint, ``weights`` under their names in the file."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors.part", metadata={"format": "pt"})
    (target / "config.json.part").write_text(config.to_json(), encoding="utf-8")
    tokenizer.backend.save(str(target / "tokenizer.json.part"), pretty=False)
    for name in FILES:
        (target / f"{name}.part").replace(target / name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file in float32, int8 ones read back; raises ModelError for half a file."""
    return floats(Stored(path))


def from_whisper(
    whisper: str | os.PathLike[str],
    tokenizer: Tokenizer,
    rows: list[list[int]],
    *,
    name: str,
    mode: Literal["natural", "padded"] = "natural",
    projector: ProjectorConfig = PROJECTOR,
) -> Model:
    """A Whisper checkpoint (a folder in transformers' layout or a hub id, any size) as an untrained denoiser.

    rows: for each token of ``tokenizer``, the Whisper tokens whose mean embedding it starts from.
    """
    folder = find(whisper, files=hub.WHISPER_FILES)
    sizes: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = whisper_config(sizes, tokenizer, name=name, mode=mode, projector=projector)
    network = build(config, tokenizer)
    stored = {k.removeprefix("model."): v.float() for k, v in load_file(folder / "model.safetensors").items()}
    stored.pop("proj_out.weight", None)  # tied to the embedding
    table = stored["decoder.embed_tokens.weight"]
    stored["decoder.embed_tokens.weight"] = start_rows(table, rows)
    fresh = {
        k: v
        for k, v in network.state_dict().items()
        if k.startswith(("projector.", "decoder.conditioning.", "decoder.future", "habits"))
    }
    for kind in ("weight", "bias"):  # audio tokens go where the decoder's own last hidden states go
        fresh[f"projector.out_norm.{kind}"] = stored[f"decoder.layer_norm.{kind}"].clone()
    fit(network, stored | fresh, source=str(folder))
    return Model(network=network, tokenizer=tokenizer, config=config)


def whisper_config(
    sizes: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    name: str,
    mode: Literal["natural", "padded"] = "natural",
    projector: ProjectorConfig = PROJECTOR,
) -> ModelConfig:
    """What a Whisper becomes. sizes: its config.json."""
    decoder = DecoderConfig(
        vocabulary=tokenizer.size, width=sizes["d_model"], heads=sizes["decoder_attention_heads"],
        layers=sizes["decoder_layers"], hidden=sizes["decoder_ffn_dim"], positions=sizes["max_target_positions"],
    )  # fmt: skip
    return ModelConfig(name=name, encoder=ears_of(sizes, mode), decoder=decoder, projector=projector)


def ears_of(sizes: Mapping[str, Any], mode: Literal["natural", "padded", "whole"]) -> EncoderConfig:
    """The encoder of a Whisper whose config.json is ``sizes``."""
    return EncoderConfig(
        mels=sizes["num_mel_bins"], width=sizes["d_model"], heads=sizes["encoder_attention_heads"],
        layers=sizes["encoder_layers"], hidden=sizes["encoder_ffn_dim"], positions=sizes["max_source_positions"],
        mode=mode,
    )  # fmt: skip


def start_rows(table: Tensor, rows: list[list[int]]) -> Tensor:
    """Embeddings (V', D) from (V, D): the row itself, or the mean of several and noise of the table's own spread.

    Without the noise two tokens of the same parts in another order would be one.
    """
    generator = torch.Generator().manual_seed(0)
    spread = table.std(0)
    means = [
        table[ids[0]] if len(ids) == 1 else table[ids].mean(0) + spread * torch.randn(spread.shape, generator=generator)
        for ids in rows
    ]
    return torch.stack(means)
