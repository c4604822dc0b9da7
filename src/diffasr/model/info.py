"""What is inside a model, counted and told: a checkpoint, or the 26 B system without its weights.

A gemma model is counted on torch's ``meta`` device, which keeps shapes and no numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from diffasr.model import hub
from diffasr.model.config import EncoderConfig, GemmaConfig, ModelConfig, ProjectorConfig
from diffasr.model.loaded import Model
from diffasr.model.whisper import WhisperNetwork
from diffasr.text import LANGUAGES

FRAMES = 1500
"""Speech frames of 30 s."""

_PARTS = (
    ("LoRA", ".lora_"),
    ("self-conditioning", ".self_conditioning."),
    ("experts", ".experts."),
    ("router", ".router."),
    ("embedding", ".embed_tokens."),
    ("stacks (attention, MLP, norms)", "model."),
)
"""A parameter is of the first part whose mark its name holds. The head is the embedding; both stacks are one."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the table."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """Parameters by part; what both stacks share counts once. The frozen speech encoder is not among them."""

    parts: tuple[Part, ...]
    audio_tokens: int
    """Of a 30 s window."""
    width: int
    """Of each audio token."""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        """Those that training changes."""
        return sum(part.trained for part in self.parts)

    @property
    def trained_share(self) -> float:
        """From 0 to 1."""
        return self.trained / self.total

    @property
    def trained_megabytes(self) -> float:
        """Of the trained weights in float32, at a million bytes each."""
        return self.trained * 4 / 1e6


def config_26b() -> ModelConfig:
    """The 26 B system as it would be trained: sizes without prompt, for nothing is fetched."""
    from diffasr.model.adapter import WHISPER
    from diffasr.model.gemma import GEMMA

    return ModelConfig(
        name="26b",
        encoder=EncoderConfig(mels=80, width=768, heads=12, layers=12, hidden=3072, mode="whole"),
        projector=ProjectorConfig(hidden=1408, strides=3),
        decoder=GemmaConfig(source=GEMMA, whisper=WHISPER, before=(), languages=()),
    )


def describe(config: ModelConfig) -> Description:
    """Count a gemma model without its weights; raises ModelError for another backbone."""
    from diffasr.model.adapter import sketch

    network = sketch(config)
    slots = int(network.projector.slots(torch.tensor(FRAMES)))
    for parameter in network.projector.parameters():
        parameter.requires_grad_(True)
    parts = (*count(network.backbone), _part("projector", network.projector.parameters()))
    return Description(parts=parts, audio_tokens=slots, width=network.backbone.config.get_text_config().hidden_size)


def count(backbone: nn.Module) -> tuple[Part, ...]:
    """A DiffusionGemma's parameters by part, shared ones once."""
    members: dict[str, list[nn.Parameter]] = {name: [] for name, _ in reversed(_PARTS)}
    for name, parameter in backbone.named_parameters():
        members[next(part for part, mark in _PARTS if mark in name)].append(parameter)
    return tuple(_part(name, iter(held)) for name, held in members.items())


def render(description: Description) -> str:
    """The table as text."""
    lines = [f"{'part':<32}{'parameters':>16}{'trained':>14}"]
    lines += [f"{part.name:<32}{part.parameters:>16,}{part.trained:>14,}" for part in description.parts]
    lines.append(f"{'total':<32}{description.total:>16,}{description.trained:>14,}")
    lines.append(f"trained: {description.trained_share:.2%}, {description.trained_megabytes:.1f} MB in float32")
    lines.append(f"30 s of speech: {description.audio_tokens} audio tokens of width {description.width}")
    return "\n".join(lines)


def summary(model: Model) -> str:
    """What is inside a whisper model: a line a part with its parameters, and the sizes that matter."""
    network = model.module
    lines = [f"{model.config.name}: {model.config.backbone} backbone, {model.config.encoder.mode} encoding"]
    if isinstance(network, WhisperNetwork):
        parts: dict[str, nn.Module] = {
            "encoder (frozen)": network.encoder,
            "projector": network.projector,
            "token embedding": network.decoder.embed_tokens,
            "conditioning": network.decoder.conditioning,
            "decoder layers": network.decoder.layers,
        }
        lines += [f"  {name:18} {_parameters(part):>12,}" for name, part in parts.items()]
    lines.append(f"  {'all':18} {_parameters(network):>12,} parameters, norms and positions included")
    lines.append(f"  {model.tokenizer.size:,} tokens, languages {', '.join(LANGUAGES)}")
    if model.letters is not None:
        stored = sum(part.nbytes for part in model.letters.arrays)
        lines.append(f"  model of letters: n-grams of up to {model.letters.order}, {stored / 1e6:.1f} MB")
    return "\n".join(lines)


def licences(name: str | None, config: ModelConfig) -> str:
    """A line for each repository that a model is made of. name: its own, if it has one."""
    gemma = config.decoder
    places: dict[str, str | None] = {} if name is None else {name: None}
    if isinstance(gemma, GemmaConfig):
        places |= {gemma.source: gemma.revision, gemma.whisper: gemma.whisper_revision}
    return "\n".join(f"licence of {place}: {hub.licence(place, revision=pin)}" for place, pin in places.items())


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _part(name: str, parameters: Iterator[nn.Parameter]) -> Part:
    held = list(parameters)
    trained = sum(p.numel() for p in held if p.requires_grad)
    return Part(name=name, parameters=sum(p.numel() for p in held), trained=trained)
