"""Folders in, models out, and back. Device and precision are decided here and nowhere else.

A checkpoint is config.json + model.safetensors + tokenizer.json. Matrices may be stored as int8 with one float16 scale
a row (``name`` and ``name.scale``): a quarter of the size, read back to float32.
"""

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffasr.errors import DownloadError, ModelError, OptionError
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.projector import Projector
from diffasr.model.whisper import WhisperDecoder, WhisperNetwork
from diffasr.text import LANGUAGES, Tokenizer

FILES = ("config.json", "model.safetensors", "tokenizer.json")
WHISPER_FILES = ("config.json", "model.safetensors")
EMBEDDED = ("mini",)
PROJECTOR = ProjectorConfig(hidden=768, strides=2, layers=2, letters=2)
"""What a Whisper is given to become ours: 12.5 audio tokens a second, and CTC labels of two letters."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network with the tokenizer and the config that belong to it."""

    network: WhisperNetwork
    tokenizer: Tokenizer
    config: ModelConfig


def build(config: ModelConfig, tokenizer: Tokenizer) -> WhisperNetwork:
    """A network with random weights; raises ModelError when config and tokenizer do not fit."""
    if tokenizer.size != config.decoder.vocabulary:
        raise ModelError(f"the tokenizer has {tokenizer.size} tokens, config.json says {config.decoder.vocabulary}")
    ears, text, bridge = config.encoder, config.decoder, config.projector
    encoder = WhisperEncoder(
        mels=ears.mels, width=ears.width, heads=ears.heads, layers=ears.layers, hidden=ears.hidden,
        positions=ears.positions,
    )  # fmt: skip
    projector = Projector(
        speech_width=ears.width, hidden=bridge.hidden, width=text.width, strides=bridge.strides, layers=bridge.layers
    )
    decoder = WhisperDecoder(
        vocabulary=text.vocabulary, width=text.width, heads=text.heads, layers=text.layers, hidden=text.hidden,
        positions=text.positions,
    )  # fmt: skip
    prefixes = torch.tensor([tokenizer.prefix(code) for code in LANGUAGES])
    return WhisperNetwork(encoder, projector, decoder, prefixes, torch.tensor(tokenizer.alphabet))


def find(name: str | os.PathLike[str], *, revision: str | None = None, files: tuple[str, ...] = FILES) -> Path:
    """The folder of an embedded model, a local folder, or a hub id (downloaded once, then from the cache).

    Raises ModelError for a folder that lacks one of ``files``, DownloadError where the hub cannot be reached.
    """
    given = os.fspath(name)
    if given in EMBEDDED:
        folder = Path(str(resources.files("diffasr") / "assets" / given))
    elif Path(given).expanduser().exists() or given.startswith((".", "/", "~")):
        folder = Path(given).expanduser()
    else:
        folder = _download(given, revision, files)
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise ModelError(
            f"model {given!r}: {folder} has no {', '.join(missing)}; give a model folder, "
            f"a hub id such as owner/name, or {' or '.join(EMBEDDED)}"
        )
    return folder


def _download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.count("/") != 1:
        raise ModelError(f"model {name!r} is neither a folder, nor a hub id (owner/name), nor {EMBEDDED[0]}")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is neither a folder nor a hub id (owner/name)") from error
    except Exception as error:  # the hub client raises a dozen kinds, none of them with a remedy
        raise DownloadError(
            f"model {name!r} could not be fetched from the hub: {error}; is the id right, and is "
            "there a network? A local folder needs none"
        ) from error


def load(name: str | os.PathLike[str], *, device: str = "cpu", revision: str | None = None) -> Model:
    """Load a checkpoint for inference: float32 on the CPU, bfloat16 on anything else.

    name: "mini", a folder, or a hub id. Raises ModelError, DownloadError, OptionError.
    """
    try:
        target = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch knows the name but not the hardware, or neither
        raise OptionError(f"device {device!r} can't be used here: {str(error).splitlines()[0]}; try cpu") from error
    folder = find(name, revision=revision)
    config = ModelConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json", letters=config.projector.letters)
    with torch.device("meta"):
        network = build(config, tokenizer)
    network.prefixes = torch.tensor([tokenizer.prefix(code) for code in LANGUAGES])
    network.alphabet = torch.tensor(tokenizer.alphabet)
    weights = _read_weights(folder / "model.safetensors")
    fit(network, weights, source=str(folder))
    network.to(device=target, dtype=torch.float32 if target.type == "cpu" else torch.bfloat16)
    return Model(network=network.eval().requires_grad_(False), tokenizer=tokenizer, config=config)


def fit(network: torch.nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Put ``weights`` into ``network`` (no copy); raises ModelError with a table of what does not fit."""
    wanted = network.state_dict()
    problems = [f"  missing {k} {tuple(v.shape)}" for k, v in wanted.items() if k not in weights]
    problems += [f"  unknown {k} {tuple(v.shape)}" for k, v in weights.items() if k not in wanted]
    problems += [
        f"  {k} is {tuple(weights[k].shape)}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        raise ModelError(f"the weights in {source} do not fit their config:\n" + "\n".join(problems[:20]))
    network.load_state_dict(weights, assign=True)


def save(
    folder: str | os.PathLike[str], model: Model, *, precision: Literal["float32", "float16", "int8"] = "float32"
) -> None:
    """Write a checkpoint folder; what was there before under the same names is replaced, each file whole.

    int8: the matrices of all layers and the token embedding; everything else is float16 then.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    for name, value in model.network.state_dict().items():
        if precision == "int8" and value.ndim == 2 and (".layers." in name or name == "decoder.embed_tokens.weight"):
            weights[name], weights[f"{name}.scale"] = quantise(value)
        else:
            weights[name] = value.to(torch.float32 if precision == "float32" else torch.float16).contiguous()
    save_file(weights, target / "model.safetensors.part", metadata={"format": "pt"})
    (target / "model.safetensors.part").replace(target / "model.safetensors")
    (target / "config.json").write_text(model.config.to_json(), encoding="utf-8")
    model.tokenizer.backend.save(str(target / "tokenizer.json"), pretty=False)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A (rows, …) matrix as int8 and one float16 scale a row; the largest value of a row becomes 127."""
    flat = weight.detach().float().flatten(1)
    scale = (flat.abs().amax(1) / 127).clamp_min(1e-7).half()
    rounded = (flat / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return rounded.view(weight.shape), scale


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}; fetch it again") from error
    weights: dict[str, Tensor] = {}
    for name in [n for n in stored if not n.endswith(".scale")]:
        value = stored.pop(name)
        scale = stored.get(f"{name}.scale")
        if scale is not None:
            value = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
        weights[name] = value.float()
    return weights


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
    folder = find(whisper, files=WHISPER_FILES)
    sizes: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = EncoderConfig(
        mels=sizes["num_mel_bins"], width=sizes["d_model"], heads=sizes["encoder_attention_heads"],
        layers=sizes["encoder_layers"], hidden=sizes["encoder_ffn_dim"], positions=sizes["max_source_positions"],
        mode=mode,
    )  # fmt: skip
    decoder = DecoderConfig(
        vocabulary=tokenizer.size, width=sizes["d_model"], heads=sizes["decoder_attention_heads"],
        layers=sizes["decoder_layers"], hidden=sizes["decoder_ffn_dim"], positions=sizes["max_target_positions"],
    )  # fmt: skip
    config = ModelConfig(name=name, encoder=encoder, decoder=decoder, projector=projector)
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


def summary(model: Model) -> str:
    """What is inside: a line a part with its parameters, and the sizes that matter."""
    network = model.network
    counts = {
        "encoder (frozen)": _parameters(network.encoder),
        "projector": _parameters(network.projector),
        "token embedding": _parameters(network.decoder.embed_tokens),
        "conditioning": _parameters(network.decoder.conditioning),
        "decoder layers": _parameters(network.decoder.layers),
    }
    lines = [f"{model.config.name}: {model.config.backbone} backbone, {model.config.encoder.mode} encoding"]
    lines += [f"  {name:18} {count:>12,}" for name, count in counts.items()]
    lines.append(f"  {'all':18} {_parameters(network):>12,} parameters, norms and positions included")
    lines.append(f"  {model.tokenizer.size:,} tokens, languages {', '.join(LANGUAGES)}")
    return "\n".join(lines)


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
