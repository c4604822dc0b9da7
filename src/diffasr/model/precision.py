"""A language model's large matrices in eight or four bits each, for a card that has no room for sixteen.

int8 is torchao's, one scale a row. int4 is bitsandbytes' NF4, one scale for 64 numbers (arXiv:2305.14314 section 3).
Both run on CPUs and on CUDA. Embedding, head, router, norms, LoRA, projector and ear stay as they are.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffasr.errors import OptionError
from diffasr.model.aside import let_in
from diffasr.model.loaded import Precision

MATRICES = re.compile(
    r"\.(self_attn\.[qkvo]_proj(\.base_layer)?|(mlp|self_conditioning)\.(gate|up|down)_proj)(\.weight)?$"
)
"""Modules, or weights, that are linear layers to be quantised; experts come on top."""
LAYER = re.compile(r"\blayers\.(?P<number>\d+)(\.|$)")
"""Which layer a module of the backbone belongs to."""
BLOCK = 64
"""Numbers that share one NF4 scale."""

_Convert = Callable[[Tensor], nn.Module]


class SplitExperts(nn.Module):
    """The experts of a layer as linear layers of their own, which libraries know how to quantise."""

    def __init__(self, experts: Any, convert: _Convert) -> None:
        super().__init__()
        self.gate_up = nn.ModuleList(convert(weight) for weight in experts.gate_up_proj)
        self.down = nn.ModuleList(convert(weight) for weight in experts.down_proj)
        self.act_fn = experts.act_fn

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """(N, D) through the K experts of each place, ``chosen`` (N, K), weighted by ``shares`` (N, K): (N, D)."""
        out = torch.zeros_like(hidden)
        for number in chosen.unique().tolist():
            place, rank = torch.where(chosen == number)
            gate, up = self.gate_up[number](hidden[place]).chunk(2, dim=-1)
            told = self.down[number](self.act_fn(gate) * up) * shares[place, rank, None]
            out = out.index_add(0, place, told.to(out.dtype))
        return out  # (N, D)


def shrink_(
    backbone: nn.Module, precision: Precision, device: torch.device, homes: Sequence[torch.device] | None = None
) -> None:
    """Quantise a DiffusionGemma, with LoRA or without, one matrix after another on ``device``; others stay put.

    homes: where a layer's matrices go afterwards; None: they stay there. What both stacks share they share afterwards.
    Raises OptionError where the library is missing.
    """
    match precision:
        case "int8":
            convert = _int8(device)
        case "int4":
            convert = _int4(device)
        case _:
            return
    done: dict[int, nn.Module] = {}  # by the weight's identity: each stack has modules of its own on shared weights
    for name in [name for name, _ in backbone.named_modules(remove_duplicate=False)]:
        is_expert, is_matrix = name.endswith(".experts"), MATRICES.search(name) is not None
        if not is_expert and not is_matrix:
            continue
        module: Any = backbone.get_submodule(name)
        if is_matrix and not isinstance(module, nn.Linear):  # LoRA around a linear layer, whose own turn comes
            continue
        weight = module.gate_up_proj if is_expert else module.weight
        if id(weight) not in done:
            made = SplitExperts(module, convert) if is_expert else convert(weight)
            layer = LAYER.search(name)
            done[id(weight)] = made if homes is None or layer is None else made.to(homes[int(layer["number"])])
        backbone.set_submodule(name, done[id(weight)])


def _int8(device: torch.device) -> _Convert:
    let_in("torchao")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise OptionError("precision int8 needs torchao: pip install 'diffasr[quantised]'") from error

    def convert(weight: Tensor) -> nn.Module:
        made = nn.Sequential(_linear(weight.to(device)))
        quantize_(made, Int8WeightOnlyConfig())
        return made[0]

    return convert


def _int4(device: torch.device) -> _Convert:
    let_in("bitsandbytes")
    try:
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise OptionError("precision int4 needs bitsandbytes: pip install 'diffasr[quantised]'") from error

    def convert(weight: Tensor) -> nn.Module:
        rows, columns = weight.shape
        if columns % BLOCK:
            raise OptionError(f"int4 takes matrices of a multiple of {BLOCK} columns, got {columns}: try int8")
        made = Linear4bit(columns, rows, bias=False, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        made.weight = Params4bit(
            weight.detach().to("cpu", copy=True), requires_grad=False, quant_type="nf4", blocksize=BLOCK,
            compress_statistics=False, module=made,
        )  # fmt: skip
        moved: nn.Module = made.to(device)  # which is when it is quantised
        return moved

    return convert


def _linear(weight: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    made = nn.Linear(columns, rows, bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return made


def stored_bytes(shape: torch.Size, precision: Precision, plain: int) -> int:
    """What a matrix (…, rows, columns) takes: codes and scales when quantised, else ``plain`` bytes a number."""
    size = shape.numel()
    match precision:
        case "int8":
            return size + 5 * size // shape[-1]  # a float32 scale and an int8 zero point a row
        case "int4":
            return -(-size // 2) + 4 * -(-size // BLOCK)
    return plain * size
