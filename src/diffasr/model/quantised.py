"""Layers in int8: weights as a checkpoint stores them, activations cut to int8 as they come.

A weight has a scale a row, an activation one a row of its own, found anew each time. Products are sums of whole
numbers, so they are exact; what is lost is lost in rounding. What stays in floats, attention and the first convolution,
goes row by row. So what a row of a batch gives does not depend on its neighbours, to the last bit: one bit that changes
how a number is rounded would change all that follows.
oneDNN does the work, by the operators that torch's own compiler uses for quantised models.
Source: arXiv:2206.01861 section 4.1 (a scale a token, a scale a row of weight).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.errors import OptionError
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.layers import Attention
from diffasr.model.precision import Precision
from diffasr.model.stored import Stored

LARGEST = 127
MIDDLE = 128
"""What 0 becomes: the kernel wants activations without a sign."""
ROUND = 64
"""Many rows are filled up to a multiple of this: for each new size a kernel is written, which costs half a millisecond,
and a third of a megabyte for good."""
FEW = 32
"""Rows that are not many. There an eighth of that multiple does."""
MOST = 256
"""Rows that are multiplied together: with more of them there would be more sizes, and larger products in between."""
LIKELY = 64
"""Tokens that count when a table's rows are averaged."""


def is_fast() -> bool:
    """Whether this machine multiplies int8 faster than float32, and exactly: without VNNI sums would saturate."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu.get_capabilities().get("avx512_vnni", False))


def is_chosen(precision: Precision, device: torch.device) -> bool:
    """Whether a whisper backbone is to run in int8; raises OptionError where it was asked for and can't."""
    match precision:
        case "auto":
            return device.type == "cpu" and is_fast()
        case "int8":
            if device.type != "cpu" or not torch.backends.mkldnn.is_available():
                raise OptionError(f"precision int8 of a whisper backbone needs an x86 CPU, not {device}: try auto")
            return True
        case "int4":
            raise OptionError("precision int4 is for a gemma backbone: try auto")
    return False


def holds(network: nn.Module) -> bool:
    """Whether some layer of ``network`` is in int8."""
    return any(isinstance(module, QuantisedLinear) for module in network.modules())


def put_(network: nn.Module, stored: Stored) -> None:
    """Replace layers by int8 ones with their ``stored`` weights, which are taken out; float ones are quantised.

    Layers whose weights are missing or of another shape stay, for ``checkpoint.fit`` to tell. So do the first
    convolution, which reads features, and the position tables. Projections of the same input become one product.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    modules = dict(network.named_modules())
    names = [(name, f"{name}.weight") for name in modules]
    fits = {name for name, weight in names if weight in shapes and stored.shape(weight) == shapes[weight]}
    _join_(modules, stored, fits)
    if "decoder.conditioning" in modules:
        layers = fits & {f"decoder.conditioning.{part}" for part in ("own", "belief", "hint")}
        modules["decoder.conditioning"].is_silent = not any(stored.read(f"{n}.weight").any() for n in layers)
    for module in modules.values():
        if isinstance(module, Attention | WhisperEncoder):
            module.is_apart = True
    for name in sorted(fits - {"encoder.conv1"}):  # so is the file, which is read as they come
        module = modules[name]
        if name == "decoder.embed_tokens":
            network.set_submodule(name, QuantisedTable(*_taken(stored, name)[:2]))
        elif isinstance(module, nn.Linear):
            network.set_submodule(name, QuantisedLinear(*_taken(stored, name)))
        elif isinstance(module, nn.Conv1d):
            network.set_submodule(name, QuantisedConv(*_taken(stored, name), stride=module.stride[0]))


def _join_(modules: dict[str, nn.Module], stored: Stored, fits: set[str]) -> None:
    """Make one layer of each self-attention's projections, and one of all that the decoder makes of the speech."""
    groups = {name: [f"{name}.{part}_proj" for part in "qkv"] for name in modules if name.endswith(".self_attn")}
    groups["decoder"] = [name for name in modules if name.endswith((".encoder_attn.k_proj", ".encoder_attn.v_proj"))]
    for home, parts in groups.items():
        if parts and fits.issuperset(parts):
            modules[home].joint = _joined(stored, parts)
            for part in parts:
                setattr(modules[part.rpartition(".")[0]], part.rpartition(".")[2], nn.Identity())
                fits.discard(part)


def _taken(stored: Stored, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight in int8, scale and bias of a layer, out of ``stored``."""
    weight, scale = stored.pop(f"{name}.weight"), stored.find(f"{name}.weight.scale")
    rows, scale = quantise(weight) if scale is None else (weight, scale)
    return rows, scale, stored.find(f"{name}.bias")


def _joined(stored: Stored, names: Sequence[str]) -> "QuantisedLinear":
    """Layers of one input as one, their outputs behind one another."""
    parts = [_taken(stored, name) for name in names]
    biases = [torch.zeros(len(rows)) if bias is None else bias.float() for rows, _, bias in parts]
    return QuantisedLinear(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), torch.cat(biases))


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A (rows, …) matrix as int8 and one float16 scale a row; the largest value of a row becomes 127."""
    flat = weight.detach().float().flatten(1)
    scale = (flat.abs().amax(1) / LARGEST).clamp_min(1e-7).half()
    rounded = flat.div(scale.float()[:, None]).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return rounded.view(weight.shape), scale


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is int8, packed as the kernel wants it."""

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, rows: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """rows: (N, K) int8; scale: (N,)."""
        super().__init__()
        parts = {
            "packed": torch.ops.onednn.qlinear_prepack(rows.contiguous(), None),
            "scale": scale.float(),
            "zero": torch.zeros(len(rows), dtype=torch.int64),
            "bias": None if bias is None else bias.float(),
        }
        for name, value in parts.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) float32 to (…, N)."""
        flat, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], len(self.scale))
        if len(flat) <= MOST:
            return self._product(flat).view(shape)
        out = flat.new_empty(len(flat), len(self.scale))
        for some, rows in zip(flat.split(MOST), out.split(MOST), strict=True):
            self._product(some, rows)
        return out.view(shape)

    def _product(self, flat: Tensor, out: Tensor | None = None) -> Tensor:
        """(rows, K) float32 to (rows, N), in ``out`` where it is given."""
        count = len(flat)
        size = flat.abs().amax(1, keepdim=True).clamp_min_(1e-20).div_(LARGEST)  # (rows, 1)
        codes = flat.div(size).add_(MIDDLE + 0.5).to(torch.uint8)  # cut down to whole numbers, so rounded
        unit = ROUND if count > FEW else ROUND // 8
        if count % unit:
            codes = F.pad(codes, (0, 0, 0, -count % unit))
        product = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, MIDDLE, self.packed, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )[:count]  # (rows, N)
        out = product if out is None else out
        if self.bias is None:
            return torch.mul(product, size, out=out)
        return torch.addcmul(self.bias, product, size, out=out)


class QuantisedConv(nn.Module):
    """A convolution over time as one product: of a frame with its neighbours, side by side in memory."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, *, stride: int) -> None:
        """weight: (N, C, kernel) int8; scale, bias: (N,)."""
        super().__init__()
        _, self.width, self.kernel = weight.shape
        self.stride = stride
        self.linear = QuantisedLinear(weight.transpose(1, 2).flatten(1), scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, N, ceil(T / stride)); the padding is that of ``kernel // 2`` zeros."""
        side = self.kernel // 2
        beside = F.pad(x.transpose(1, 2), (0, 0, side, side)).flatten(1)  # (B, (T + 2 side) C)
        windows = beside.unfold(1, self.kernel * self.width, self.stride * self.width)  # (B, T', kernel C)
        rows = [self.linear(row[None]) for row in windows]  # one by one: the product wants a copy of what overlaps
        return torch.cat(rows).transpose(1, 2)


class QuantisedTable(nn.Module):
    """A token embedding in int8, read by row and multiplied as a whole."""

    rows: Tensor
    scale: Tensor

    def __init__(self, rows: Tensor, scale: Tensor) -> None:
        """rows: (V, D) int8; scale: (V,)."""
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.head = QuantisedLinear(rows, scale)
        self._choice: tuple[Tensor, QuantisedLinear] | None = None  # packed for labels that may be asked for again

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) ids to (…, D)."""
        return self.rows[tokens].float() * self.scale[tokens][..., None]

    def scores(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """(…, D) to the product with each row (…, V), or with those of ``labels`` (C,) only, (…, C)."""
        if labels is None:
            return self.head(hidden)
        if self._choice is None or self._choice[0] is not labels:
            self._choice = labels, QuantisedLinear(self.rows[labels], self.scale[labels])
        return self._choice[1](hidden)

    def mean(self, logits: Tensor) -> Tensor:
        """(B, L, V) logits to the mean embedding of the likeliest tokens under them, (B, L, D)."""
        best, tokens = logits.topk(min(LIKELY, logits.shape[-1]), dim=-1)  # (B, L, k)
        return (best.softmax(-1)[..., None] * self(tokens)).sum(2)
