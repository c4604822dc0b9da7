"""Shapes in, floating-point operations of a training step out: counted from the sizes, not measured.

A product of (n, a) with (a, b) is 2 n a b operations; what is not a matrix product is left out. On the way back a
frozen matrix costs what it cost before, for only its input has a gradient; LoRA and attention's own products cost it
twice. A test compares with torch's counter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffasr.model.config import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """One row of a batch, as a gemma reads it."""

    prompt: int
    """Places before the canvas: words, audio tokens, the language."""
    slots: int
    """Audio tokens among them."""
    canvas: int
    text: int
    """Tokens that the autoregressive loss reads."""
    ar_share: float = 0.25
    """Share of the rows that it reads."""
    conditioned_share: float = 0.5
    """Share of the steps with a first pass for self-conditioning."""
    recompute: bool = False
    """Experts and MLPs are computed once more on the way back."""


@dataclass(frozen=True)
class Work:
    """Operations of one way forth."""

    frozen: float
    learned: float
    """Those whose two factors have gradients."""

    @property
    def forth(self) -> float:
        """Without a way back."""
        return self.frozen + self.learned

    @property
    def both(self) -> float:
        """With it."""
        return 2 * self.frozen + 3 * self.learned


def step_flops(text: Mapping[str, Any], shapes: Shapes, *, rank: int = 16) -> float:
    """Operations of one row of a training step of a gemma, all three losses; ear and projector not counted.

    text: sizes as ``full_text_config`` names them.
    """
    head = 2.0 * text["hidden_size"] * text["vocab_size"]  # of one place
    belief = 6.0 * text["hidden_size"] * text["intermediate_size"] * shapes.canvas
    kinds = text["layer_types"]
    read = stack(text, shapes.prompt, shapes.prompt, rank)
    last = stack({**text, "layer_types": kinds[-1:]}, shapes.prompt, shapes.prompt, rank)  # all see its keys alone
    told = stack(text, shapes.text, shapes.prompt + shapes.text, rank)
    written = stack(text, shapes.canvas, shapes.prompt + shapes.canvas, rank)
    total = read.both - (last.both - last.forth) + (3 * shapes.slots + 1) * head  # CTC twice: seeds learn nothing
    total += shapes.ar_share * (told.both + 2 * (shapes.text + 1) * head)
    total += written.both + 2 * shapes.canvas * head + belief
    total += shapes.conditioned_share * (written.forth + 2 * shapes.canvas * head + belief)
    if shapes.recompute:
        places = (shapes.prompt + shapes.ar_share * shapes.text + shapes.canvas) * len(kinds) - shapes.prompt
        total += places * _experts(text)
    return total


def stack(text: Mapping[str, Any], places: float, context: float, rank: int = 16) -> Work:
    """One way through the layers of a stack: ``places`` that each see ``context``."""
    frozen = learned = 0.0
    size = text["hidden_size"]
    for kind in text["layer_types"]:
        is_full = kind == "full_attention"
        head = text["global_head_dim" if is_full else "head_dim"]
        keys = head * text["num_global_key_value_heads" if is_full else "num_key_value_heads"]
        width = head * text["num_attention_heads"]
        matrices = [(size, width), (size, keys), (width, size)] + ([] if is_full else [(size, keys)])
        frozen += places * (sum(2.0 * a * b for a, b in matrices) + _experts(text) + 2.0 * size * text["num_experts"])
        learned += places * (sum(2.0 * rank * (a + b) for a, b in matrices) + 4.0 * context * width)
    return Work(frozen, learned)


def _experts(text: Mapping[str, Any]) -> float:
    """Those of one place in a layer, and its MLP."""
    wide = text["top_k_experts"] * text["moe_intermediate_size"] + text["intermediate_size"]
    return 6.0 * text["hidden_size"] * wide


def ear_flops(ears: EncoderConfig, frames: int = 1500) -> float:
    """Operations of a Whisper encoder that hears so many frames, one way only: it is frozen."""
    size = ears.width
    convolutions = 2.0 * 3 * (ears.mels * size * 2 * frames + size * size * frames)
    layer = 2.0 * frames * (4 * size * size + 2 * size * ears.hidden) + 4.0 * frames * frames * size
    return convolutions + ears.layers * layer
