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
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffasr.errors import OptionError
from diffasr.model.loaded import Precision
from diffasr.model.placement import HOST, Target, cards
from diffasr.model.precision import MATRICES, stored_bytes

if TYPE_CHECKING:
    from diffasr.model.gemma import GemmaNetwork

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "int8", "int4")
GIB = 2**30
EVIDENCE = 5
"""Arrays of B x L x V float32 numbers at once while ``diffusion.fuse`` adds CTC's evidence to the logits of a step."""
RESERVE = 1.0
"""GiB a card that are kept free: CUDA itself, and holes between tensors. An assumption, not a measurement."""
_LAYER = re.compile(r"^backbone\.model\..*\blayers\.(\d+)\.")
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done at once."""

    rows: int = 4
    """Windows in a batch: as many as a Transcriber decodes together, unless told otherwise."""
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
    """Of each layer that may stand elsewhere: both stacks of a gemma and their LoRA; a whisper has none."""

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
    """The largest moment of a prefill, without weights: CTC's logits, or a layer's experts."""
    return max(_head_bytes(text, work.rows * slots, plain), _experts_bytes(text, work.rows * prompt, plain))


def step_bytes(text: Any, work: Work, *, plain: int = 2) -> int:
    """The largest moment of ``denoise``, without weights, cache and the logits of the step before."""
    return max(_head_bytes(text, work.rows * work.canvas, plain), _experts_bytes(text, work.rows * work.canvas, plain))


def _head_bytes(text: Any, places: int, plain: int) -> int:
    """Logits of so many places: as the head gives them, and in float32 where it is another type."""
    return int(places * text.vocab_size * (_FLOAT + (plain if plain < _FLOAT else 0)))


def _array(text: Any, work: Work) -> int:
    """B x L x V float32 numbers."""
    return work.rows * work.canvas * int(text.vocab_size) * _FLOAT


def _experts_bytes(text: Any, places: int, plain: int) -> int:
    """In a layer: seven tensors of its own width, and what its experts hold of each chosen pair of place and expert."""
    chosen = places * text.top_k_experts
    width, inner = text.hidden_size, text.moe_intermediate_size
    return int(plain * (7 * places * width + chosen * max(4 * width, width + 4 * inner)))


def plan(network: "GemmaNetwork", work: Work) -> tuple[Row, ...]:
    """A row for each of PRECISIONS. Of the network only shapes are read: one on the meta device will do."""
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
    """The least number of layers, the last ones, that must stay on the host for one card to do; None: none helps.

    One layer more than fits has to pass through the card, so room for the largest is kept.
    """
    layers = row.weights.layers
    room = (gpu_memory - RESERVE) * GIB - row.weights.fixed - row.beside
    if sum(layers) <= room:
        return 0
    kept = next((n for n in range(len(layers), -1, -1) if sum(layers[:n]) + max(layers, default=0) <= room), None)
    return None if kept is None else len(layers) - kept


def homes(network: "GemmaNetwork", target: Target, work: Work | None = None) -> list[torch.device]:
    """Where each layer of a network that is still whole goes: what ``verdict`` says of the same numbers.

    Raises OptionError for a target that the plan knows nothing of, or where nothing fits.
    """
    precision = "bfloat16" if target.precision in ("auto", "full") else target.precision
    row = next((row for row in plan(network, work or Work()) if row.precision == precision), None)
    if row is None or target.gpu_memory is None:
        raise OptionError(f"gpu_memory goes with {', '.join(PRECISIONS)}, not with {precision}")
    check(target.gpu_memory, 1)
    there = cards(target.device)
    taken = spread(row, target.gpu_memory, len(there))
    if taken is not None:
        return [card for card, count in zip(there, taken, strict=True) for _ in range(count)]
    away = offloaded(row, target.gpu_memory)
    if away is None:
        raise OptionError(
            f"{precision} needs {row.total / GIB:.1f} GiB, and {target.gpu_memory:g} are too little for what can't be "
            "offloaded: take int8 or int4, or a larger card"
        )
    return [there[0]] * (len(row.weights.layers) - away) + [HOST] * away


def check(gpu_memory: float, gpus: int) -> None:
    """Raise OptionError for cards that are none."""
    if gpu_memory <= RESERVE or gpus < 1:
        raise OptionError(f"a plan needs more than {RESERVE:g} GiB and 1 card at least, got {gpu_memory:g} and {gpus}")


def verdict(row: Row, gpu_memory: float, gpus: int) -> str:
    """Whether and how a row fits, in a few words."""
    taken = spread(row, gpu_memory, gpus)
    if taken is not None:
        ends = [0]
        for count in taken:
            ends.append(ends[-1] + count)
        ranges = [f"{a}-{b - 1}" if b > a else "none" for a, b in pairwise(ends)]
        return "fits" if gpus == 1 or not row.weights.layers else "fits, layers " + " | ".join(ranges)
    away = offloaded(row, gpu_memory)
    if away is None:
        return "too large, offloaded too" if row.weights.layers else "too large"
    moved = sum(row.weights.layers[-away:]) / GIB
    return f"too large; fits one card with {away} layers on the host, {moved:.1f} GiB over the bus a step"


def render(rows: tuple[Row, ...], work: Work, *, gpu_memory: float, gpus: int = 1) -> str:
    """The table as text. gpu_memory: GiB of each card."""
    check(gpu_memory, gpus)
    titles = ("weights", "cache", "logits", "layers", "all")
    lines = [
        f"{gpus} x {gpu_memory:g} GiB, windows at once: {work.rows}, canvas: {work.canvas}; GiB at the largest moment",
        f"{'precision':<10}" + "".join(f"{title:>10}" for title in titles) + "  verdict",
    ]
    for row in rows:
        sizes = (row.weights.total, row.cache, row.logits, row.activations, row.total)
        cells = "".join(f"{size / GIB:>10.2f}" for size in sizes)
        lines.append(f"{row.precision:<10}{cells}  {verdict(row, gpu_memory, gpus)}")
    lines.append(f"logits and layers are largest at different moments; {RESERVE:g} GiB a card is kept free (assumed)")
    if not rows[0].weights.layers:
        return "\n".join(
            [*lines, "a whisper model stands on one card, or on the CPU. None of it was measured on a GPU"]
        )
    lines += [
        "load(…, device='cuda', gpu_memory=…) and transcribe --gpu-memory do this; loading needs room for the bfloat16",
        "weights in the host's memory. None of it was measured on a GPU",
    ]
    return "\n".join(lines)
