"""The reference's weight file in, our checkpoint out.

The key names of ``diffusion_asr_small.pt`` were never published, so tensors are told apart by what they are: LoRA
matrices by peft's naming, convolutions, linear layer and norms of the projector by the chain of their shapes. What fits
twice or not at all is refused with a table. Nothing but tensors and plain values is unpickled.
"""

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffasr.errors import ModelError
from diffasr.model import adapter
from diffasr.model.checkpoint import compare
from diffasr.model.config import GemmaConfig, ModelConfig, ProjectorConfig
from diffasr.model.gemma import GEMMA
from diffasr.model.loaded import Model
from diffasr.model.placement import Target
from diffasr.text import Tokenizer

NAME = "diffusion-gemma-asr-small"
_LORA = re.compile(r"^(?P<path>.*)layers\.(?P<place>\d+\.self_attn\.[qkvo]_proj)\.lora_(?P<half>[AB])(\.\w+)?\.weight$")
_STACKS = {"encoder": "backbone.model.encoder.language_model.layers", "decoder": "backbone.model.decoder.layers"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in such a file, under our names."""

    weights: dict[str, Tensor]
    projector: ProjectorConfig
    rank: int
    alpha: int | None
    """As the file says; None where it does not."""
    table: str
    """Which of its tensors became what."""


def load(file: Path, target: Target) -> Model:
    """The file as a model for inference, on the published language model and ear."""
    config, tokenizer, found = convert(file)
    network = adapter.assemble(config, tokenizer, dtype=target.dtype)
    adapter.put(network, found.weights, source=str(file))
    return adapter.placed(network, config, tokenizer, target)


def convert(
    file: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] = GEMMA,
    whisper: str | os.PathLike[str] = adapter.WHISPER,
    name: str = NAME,
    alpha: int | None = None,
) -> tuple[ModelConfig, Tokenizer, Found]:
    """Config, tokenizer and weights of the reference's file; the language model's own weights are not needed.

    alpha: of LoRA; None: as the file says, or twice the rank where it says nothing. Raises ModelError with a table of
    what matched and what did not, unless all did.
    """
    content = read(Path(file))
    config, tokenizer = adapter.plan_adapter(source, whisper, name=name)
    found = match(content, speech_width=config.encoder.width, source=str(file))
    chosen = alpha or found.alpha or 2 * found.rank
    gemma = config.decoder
    assert isinstance(gemma, GemmaConfig)
    config = replace(config, projector=found.projector, decoder=replace(gemma, rank=found.rank, alpha=chosen))
    compare(adapter.adapter(adapter.sketch(config)), found.weights, source=str(file))
    return config, tokenizer, found


def read(file: Path) -> dict[str, Any]:
    """Everything in a PyTorch file by its dotted path; raises ModelError for what is no such file or holds code."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"there is no {file}: give the reference's .pt file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{file} is not a PyTorch file of tensors alone: {str(error).splitlines()[0]}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{file} holds a {type(content).__name__}; a dictionary of tensors was expected")
    return dict(_flat(content, ""))


def _flat(content: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        out += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


def match(content: Mapping[str, Any], *, speech_width: int, source: str) -> Found:
    """Tell apart what ``read`` gave; raises ModelError with the table unless each tensor has one place."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    places: dict[str, str] = {}  # name in the file to ours
    faults: dict[str, str] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "lora_" not in name:
            rest[name] = tensor
            continue
        place = _lora_place(name) if tensor.ndim == 2 else None
        if place is None:
            faults[name] = "is not peft's name of a LoRA matrix on q, k, v or o of one stack"
        else:
            places[name] = place
    bridge, own, odd = _projector(rest, speech_width)
    places |= own
    faults |= odd | _doubles(places)
    rank = _rank(tensors, places, faults)
    lines = [f"  {n} {tuple(t.shape)} {t.dtype} -> {places.get(n, '?')}" for n, t in tensors.items() if n not in faults]
    lines += [f"  {name} {tuple(tensors[name].shape)}: {why}" for name, why in faults.items() if name in tensors]
    lines += [f"  {why}" for name, why in faults.items() if name not in tensors]
    lines += [f"  {name}: not a tensor, left out" for name in content if name not in tensors]
    table = "\n".join(lines)
    if faults:
        raise ModelError(f"{source} can't be matched without a guess; tell its layout in an issue:\n{table}")
    weights = {ours: tensors[theirs].float() for theirs, ours in places.items()}
    return Found(weights=weights, projector=bridge, rank=rank, alpha=_alpha(content), table=table)


def _lora_place(name: str) -> str | None:
    found = _LORA.match(name)
    stacks = set(re.findall("encoder|decoder", found["path"])) if found else set()
    if found is None or len(stacks) != 1:
        return None
    return f"{_STACKS[stacks.pop()]}.{found['place']}.lora_{found['half']}.weight"


def _doubles(places: Mapping[str, str]) -> dict[str, str]:
    """Tensors that claim a place which another claims too."""
    claims: dict[str, list[str]] = {}
    for name, place in places.items():
        claims.setdefault(place, []).append(name)
    return {
        n: f"and {len(names) - 1} more mean {place}" for place, names in claims.items() if len(names) > 1 for n in names
    }


def _rank(tensors: Mapping[str, Tensor], places: Mapping[str, str], faults: dict[str, str]) -> int:
    ranks = {
        (tensors[name].shape[0] if ".lora_A." in place else tensors[name].shape[-1])
        for name, place in places.items()
        if ".lora_" in place
    }
    if len(ranks) == 1:
        return int(ranks.pop())
    faults["LoRA"] = f"LoRA has ranks {sorted(ranks)}: one was expected" if ranks else "there is no LoRA in it"
    return 0


def _alpha(content: Mapping[str, Any]) -> int | None:
    told = {
        int(v) for n, v in content.items() if re.search(r"(^|[._])(lora_)?alpha$", n) and isinstance(v, int | float)
    }
    return told.pop() if len(told) == 1 else None


def _projector(
    tensors: Mapping[str, Tensor], speech_width: int
) -> tuple[ProjectorConfig, dict[str, str], dict[str, str]]:
    """Sizes, places and faults: convolutions one behind the other, then a linear layer, norms before and after."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        modules.setdefault(owner, {})[part] = tensor
    kinds: dict[int, list[str]] = {1: [], 2: [], 3: []}
    faults: dict[str, str] = {}
    for owner, parts in modules.items():
        if set(parts) != {"weight", "bias"} or parts["weight"].ndim not in kinds or parts["bias"].ndim != 1:
            faults |= {f"{owner}.{part}".strip("."): "is no layer that our projector has" for part in parts}
        else:
            kinds[parts["weight"].ndim].append(owner)
    shapes = {owner: tuple(parts["weight"].shape) for owner, parts in modules.items() if "weight" in parts}
    convs, why = _chain(kinds[3], shapes, speech_width)
    places = {owner: f"projector.convs.{n}" for n, owner in enumerate(convs)}
    hidden = shapes[convs[-1]][0] if convs else 0
    linear = [owner for owner in kinds[2] if shapes[owner][1] == hidden]
    width = shapes[linear[0]][0] if len(linear) == 1 else 0
    if why or not width:
        faults["projector"] = (
            why or f"{len(linear)} linear layers of {hidden} inputs follow the convolutions: one should"
        )
    else:
        places[linear[0]] = "projector.linear"
        places |= _norms(kinds[1], shapes, speech_width, width)
    for owner in kinds[1] + kinds[2] + kinds[3]:
        if owner not in places:
            faults |= {f"{owner}.{part}": "has no place, or more than one, in the projector" for part in modules[owner]}
    named = {f"{o}.{part}": f"{place}.{part}" for o, place in places.items() for part in ("weight", "bias")}
    norms = tuple(n for n in ("norm", "out_norm") if f"projector.{n}" in places.values())
    config = ProjectorConfig(hidden=hidden, strides=len(convs), norms=norms)
    return config, named, faults


def _chain(convs: list[str], shapes: Mapping[str, tuple[int, ...]], width: int) -> tuple[list[str], str]:
    """The order in which the outputs of one are the inputs of the next, and what is wrong with it.

    Layers of one shape are in the order of the numbers in their names, if names differ in a number alone.
    """
    out: list[str] = []
    left = list(convs)
    while left:
        fitting = [owner for owner in left if shapes[owner][1] == width and shapes[owner][2] == 3]
        if not fitting:
            return out, f"no convolution of kernel 3 takes {width} channels where {', '.join(left)} should follow"
        if len(fitting) > 1:
            if len({re.sub(r"\d+", "#", owner) for owner in fitting}) > 1 or len({shapes[o] for o in fitting}) > 1:
                return out, f"which of {', '.join(fitting)} comes first can't be told"
            fitting.sort(key=lambda owner: [int(digits) for digits in re.findall(r"\d+", owner)])
        out.append(fitting[0])
        left.remove(fitting[0])
        width = shapes[fitting[0]][0]
    hidden = {shapes[owner][0] for owner in out}
    return out, "" if len(hidden) == 1 else f"convolutions of widths {sorted(hidden)}: one width was expected"


def _norms(norms: list[str], shapes: Mapping[str, tuple[int, ...]], speech_width: int, width: int) -> dict[str, str]:
    """A norm of the ear's width stands before, one of the language model's behind; none where that is no answer."""
    before = [owner for owner in norms if shapes[owner] == (speech_width,)]
    behind = [owner for owner in norms if shapes[owner] == (width,)]
    if speech_width == width or len(before) > 1 or len(behind) > 1:
        return {}
    return dict.fromkeys(before, "projector.norm") | dict.fromkeys(behind, "projector.out_norm")
