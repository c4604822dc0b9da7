"""How much memory a gemma model takes, before any of it is fetched: sizes in, a table of what fits out.

Weights are counted on the meta device. The rest is counted from shapes: the key/value cache with CTC's logits, and the
largest moment of a call, which is either in the experts of a layer or where logits are made. Source of the latter: the
order of tensors in ``transformers`` 5.24.0 (DiffusionGemma's layers, experts by grouped_mm); with quantised experts,
which run one by one, it is an upper bound.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from diffasr.errors import OptionError
from diffasr.model.adapter import sketch
from diffasr.model.config import ModelConfig
from diffasr.model.precision import MATRICES, Precision, stored_bytes

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "int8", "int4")
GIB = 2**30
EVIDENCE = 5
"""Arrays of B x L x V float32 numbers at once while decode.py adds CTC's evidence to the logits of a step."""
RESERVE = 1.0
"""GiB a card that are kept free: CUDA itself, and holes between tensors. An assumption, not a measurement."""
_LAYER = re.compile(r"^backbone\.model\..*\blayers\.(\d+)\.")
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done at once."""

    rows: int = 1
    """Windows in a batch."""
    canvas: int = 192
    frames: int = 1500
    """Of a window."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a network."""

    fixed: int
    """Embedding, self-conditioning, projector and ear."""
    layers: tuple[int, ...]
    """Of each layer, both stacks and their LoRA."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.fixed + sum(self.layers)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, in bytes."""

    precision: Precision
    weights: Weights
    cache: int
    logits: int
    activations: int

    @property
    def beside(self) -> int:
        """All but weights. Logits and activations are largest at different moments."""
        return self.cache + max(self.logits, self.activations)

    @property
    def total(self) -> int:
        """At the largest moment."""
        return self.weights.total + self.beside


def weigh(network: nn.Module, precision: Precision, *, plain: int = 2) -> Weights:
    """Bytes of the weights of a GemmaNetwork, on any device, at ``plain`` bytes a number where not quantised."""
    layers: defaultdict[int, int] = defaultdict(int)
    fixed = 0
    for name, parameter in network.named_parameters():  # what both stacks share comes once
        is_quantised = ".experts." in name or MATRICES.search(name) is not None
        size = stored_bytes(parameter.shape, precision if is_quantised else "bfloat16", plain)
        layer = _LAYER.match(name)
        if layer:
            layers[int(layer[1])] += size
        else:
            fixed += size
    return Weights(fixed=fixed, layers=tuple(layers[number] for number in sorted(layers)))


def cache_bytes(text: Any, work: Work, *, prompt: int, slots: int, plain: int = 2) -> int:
    """What a prefill leaves behind: keys and values of ``prompt`` places, ``slots`` audio tokens and their logits.

    text: the backbone's text configuration.
    """
    places = 0
    for number, kind in enumerate(text.layer_types):
        layer = text.per_layer_config[number]
        seen = min(prompt, text.sliding_window - 1) if kind == "sliding_attention" else prompt
        places += 2 * layer.num_key_value_heads * layer.head_dim * seen
    audio = slots * (text.hidden_size * plain + text.vocab_size * _FLOAT)
    return work.rows * (places * plain + audio)


def prefill_bytes(text: Any, work: Work, *, prompt: int, slots: int, plain: int = 2) -> int:
    """The largest moment of a prefill, without weights: three arrays of CTC logits, or a layer's experts."""
    ctc = 3 * work.rows * slots * text.vocab_size * _FLOAT
    return max(ctc, _experts_bytes(text, work.rows * prompt, plain))


def step_bytes(text: Any, work: Work, *, plain: int = 2) -> int:
    """The largest moment of ``denoise``, without weights, cache and the logits of the step before."""
    return max(2 * _array(text, work), _experts_bytes(text, work.rows * work.canvas, plain))


def _array(text: Any, work: Work) -> int:
    """B x L x V float32 numbers."""
    return work.rows * work.canvas * int(text.vocab_size) * _FLOAT


def _experts_bytes(text: Any, places: int, plain: int) -> int:
    """In a layer: seven tensors of its own width, and what its experts hold of each chosen pair of place and expert."""
    chosen = places * text.top_k_experts
    width, inner = text.hidden_size, text.moe_intermediate_size
    return int(plain * (7 * places * width + chosen * max(4 * width, width + 4 * inner)))


def plan(config: ModelConfig, work: Work) -> tuple[Row, ...]:
    """A row for each of PRECISIONS; nothing is fetched but the config of a language model that is not the 26 B one."""
    network = sketch(config)
    text = network.backbone.config.get_text_config()
    slots = int(network.projector.slots(torch.tensor(work.frames)))
    prompt = len(network.before) + slots + len(network.after) + 1
    before = prefill_bytes(text, work, prompt=prompt, slots=slots)
    layer = max(_experts_bytes(text, work.rows * n, 2) for n in (prompt, work.canvas))
    logits = max(before, (1 + EVIDENCE) * _array(text, work))  # the step before has one more
    cache = cache_bytes(text, work, prompt=prompt, slots=slots)
    return tuple(
        Row(precision=precision, weights=weigh(network, precision), cache=cache, logits=logits,
            activations=layer + _array(text, work))
        for precision in PRECISIONS
    )  # fmt: skip


def spread(row: Row, gpu_memory: float, gpus: int) -> list[int] | None:
    """How many layers each of ``gpus`` cards of ``gpu_memory`` GiB takes, in order; None where they have no room.

    The first also holds what is no layer and the cache; every card needs room for a layer's activations.
    """
    room = (gpu_memory - RESERVE) * GIB
    left = list(row.weights.layers)
    taken = []
    for card in range(gpus):
        free = room - (row.weights.fixed + row.beside if card == 0 else row.activations)
        count = 0
        while left and free >= left[0]:
            free -= left.pop(0)
            count += 1
        taken.append(count)
        if card == 0 and free < 0:
            return None
    return None if left else taken


def offloaded(row: Row, gpu_memory: float) -> int | None:
    """The least number of layers that must stay in the host's memory for one card to do; None where none helps.

    One layer more than fits has to pass through the card, so room for one is kept.
    """
    layers = sorted(row.weights.layers, reverse=True)
    room = (gpu_memory - RESERVE) * GIB - row.weights.fixed - row.beside
    if sum(layers) <= room:
        return 0
    kept = next((n for n in range(len(layers), -1, -1) if sum(layers[:n]) + layers[0] <= room), None)
    return None if kept is None else len(layers) - kept


def verdict(row: Row, gpu_memory: float, gpus: int) -> str:
    """Whether and how a row fits, in a few words."""
    taken = spread(row, gpu_memory, gpus)
    if taken is not None:
        ends = [0]
        for count in taken:
            ends.append(ends[-1] + count)
        ranges = [f"{a}-{b - 1}" if b > a else "none" for a, b in pairwise(ends)]
        return "fits" if gpus == 1 else "fits, layers " + " | ".join(ranges)
    away = offloaded(row, gpu_memory)
    if away is None:
        return "too large, offloaded too"
    moved = sum(sorted(row.weights.layers)[-away:]) / GIB
    return f"too large; fits one card with {away} layers on the host, {moved:.1f} GiB over the bus a step"


def render(rows: tuple[Row, ...], work: Work, *, gpu_memory: float, gpus: int = 1) -> str:
    """The table as text. gpu_memory: GiB of each card."""
    if gpu_memory <= RESERVE or gpus < 1:
        raise OptionError(f"a plan needs more than {RESERVE:g} GiB and 1 card at least, got {gpu_memory:g} and {gpus}")
    titles = ("weights", "cache", "logits", "layers", "all")
    lines = [
        f"{gpus} x {gpu_memory:g} GiB, windows at once: {work.rows}, canvas: {work.canvas}; GiB at the largest moment",
        f"{'precision':<10}" + "".join(f"{title:>10}" for title in titles) + "  verdict",
    ]
    for row in rows:
        sizes = (row.weights.total, row.cache, row.logits, row.activations, row.total)
        cells = "".join(f"{size / GIB:>10.2f}" for size in sizes)
        lines.append(f"{row.precision:<10}{cells}  {verdict(row, gpu_memory, gpus)}")
    lines += [
        f"logits and layers are largest at different moments; {RESERVE:g} GiB a card is kept free (assumed)",
        "loading needs room for the bfloat16 weights in the host's memory and puts all layers on one card; of other",
        "ways this is the arithmetic, for accelerate's device_map. None of it was measured on a GPU",
    ]
    return "\n".join(lines)
