"""What the 26 B system is made of, counted without its weights: sizes in, a table of parameters out.

Everything is built on torch's ``meta`` device, which keeps shapes and no numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from diffasr.model.gemma import CANVAS, add_lora, build_backbone, full_text_config
from diffasr.model.projector import Projector

FRAMES = 1500
"""Speech frames of 30 s."""
SPEECH_WIDTH = 768
"""Of Whisper-small."""
PROJECTOR_HIDDEN = 1408
RANK = 16

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


def describe_26b() -> Description:
    """Build the 26 B system without weights and count it."""
    with torch.device("meta"):
        text = full_text_config()
        backbone = build_backbone(text, CANVAS)
        add_lora(backbone, RANK)
        width: int = text["hidden_size"]
        projector = Projector(speech_width=SPEECH_WIDTH, hidden=PROJECTOR_HIDDEN, width=width, strides=3)
    slots = int(projector.slots(torch.tensor(FRAMES)))
    return Description(parts=(*count(backbone), _part("projector", projector.parameters())), audio_tokens=slots,
                       width=width)  # fmt: skip


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


def _part(name: str, parameters: Iterator[nn.Parameter]) -> Part:
    held = list(parameters)
    trained = sum(p.numel() for p in held if p.requires_grad)
    return Part(name=name, parameters=sum(p.numel() for p in held), trained=trained)
