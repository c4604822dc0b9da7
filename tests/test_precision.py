"""Quantised matrices say nearly the same, take what the plan says, and stay shared by both stacks."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import SPEECH_WIDTH, adapter_model, small_text, write_sources
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion

from diffasr.errors import OptionError
from diffasr.model import adapter, checkpoint
from diffasr.model.gemma import build_backbone
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.model.precision import SplitExperts, shrink_, stored_bytes

CPU = torch.device("cpu")
ERROR = {"int8": 0.01, "int4": 0.12}
"""Largest relative error of a matrix: half a step of 127, and NF4's coarsest gap."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter")
    checkpoint.save(place / "a", adapter_model(write_sources(place)))
    return place / "a"


def logits_of(model: Model) -> Tensor:
    dice = torch.Generator().manual_seed(1)
    speech = Speech(frames=torch.randn(2, 80, SPEECH_WIDTH, generator=dice), lengths=torch.tensor([80, 48]))
    canvas = torch.randint(40, (2, 16), generator=dice)
    with torch.inference_mode():
        cache = model.network.prefill(speech, torch.tensor([0, 1]))
        first = model.network.denoise(canvas, cache, lengths=torch.tensor([16, 9]))
        return model.network.denoise(canvas, cache, lengths=torch.tensor([16, 9]), previous=first)


def held_bytes(module: nn.Module) -> int:
    """Every tensor that a quantised layer keeps, whatever its library calls it."""
    found: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is None:
                continue
            state = getattr(parameter, "quant_state", None)
            inner = (
                [v for v in vars(parameter).values() if isinstance(v, Tensor)]
                if type(parameter.data) is not Tensor
                else []
            )
            tensors = inner or [parameter.data, *([state.absmax] if state is not None else [])]
            found |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def read_back(layer: nn.Module, columns: int) -> Tensor:
    """The matrix that a quantised linear layer applies."""
    return layer(torch.eye(columns)).T.detach()


def rounded(whole: Model, small: Model) -> Model:
    """``whole`` with the matrices that ``small`` applies, in plain layers."""
    plain, shrunk = whole.network.backbone, small.network.backbone
    for name, module in plain.named_modules():
        other = shrunk.get_submodule(name)
        if isinstance(other, SplitExperts):
            for weight, layers in ((module.gate_up_proj, other.gate_up), (module.down_proj, other.down)):
                weight.copy_(torch.stack([read_back(layer, weight.shape[2]) for layer in layers]))
        elif type(module) is nn.Linear and other is not module and "lora" not in name and name != "lm_head":
            module.weight.copy_(read_back(other, module.in_features))
    return whole


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_model_is_the_model_with_rounded_matrices(folder: Path, precision: Any) -> None:
    whole, small = checkpoint.load(folder), checkpoint.load(folder, precision=precision)
    small.network.train()  # when it evaluates on a CPU, bitsandbytes adds up in bfloat16
    before, quantised = logits_of(whole), logits_of(small)
    assert not torch.equal(before, quantised), "nothing was quantised"
    assert held_bytes(small.network.backbone) < 0.75 * held_bytes(whole.network.backbone)
    kept = adapter.adapter(small.network)
    assert all(torch.equal(kept[name], value) for name, value in adapter.adapter(whole.network).items())
    torch.testing.assert_close(logits_of(rounded(whole, small)), quantised, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_both_stacks_share_quantised_layers_as_they_shared_weights(folder: Path, precision: Any) -> None:
    backbone = checkpoint.load(folder, precision=precision).network.backbone
    assert isinstance(backbone, DiffusionGemmaForBlockDiffusion)
    for one, other in zip(backbone.model.decoder.layers, backbone.model.encoder.language_model.layers, strict=True):
        assert one.experts is other.experts
        assert one.mlp.up_proj is other.mlp.up_proj
        assert one.self_attn.q_proj.base_layer is other.self_attn.q_proj.base_layer
        assert one.self_attn.q_proj is not other.self_attn.q_proj, "LoRA is each stack's own"
        assert isinstance(one.router.proj, nn.Linear) and one.router.proj.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_stored_bytes_are_what_is_stored(precision: Any) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(small_text(), 64)
    layer = backbone.model.decoder.layers[0]
    weight, experts = layer.mlp.up_proj.weight.detach().clone(), layer.experts.gate_up_proj.shape
    shrink_(backbone, precision, CPU)
    assert held_bytes(layer.mlp.up_proj) == stored_bytes(weight.shape, precision, 4)
    assert held_bytes(layer.experts.gate_up) == stored_bytes(experts, precision, 4)
    back = read_back(layer.mlp.up_proj, weight.shape[1])
    assert ((back - weight).abs().amax(1) <= ERROR[precision] * 2 * weight.abs().amax(1)).all()


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_plain_precisions_change_no_layer(precision: Any) -> None:
    backbone = build_backbone(small_text(), 64)
    names = [(n, id(m)) for n, m in backbone.named_modules()]
    shrink_(backbone, precision, CPU)
    assert names == [(n, id(m)) for n, m in backbone.named_modules()]


def test_split_experts_agree_with_the_librarys() -> None:
    torch.manual_seed(0)
    experts = build_backbone(small_text(), 64, experts="eager").model.decoder.layers[0].experts

    def plain(weight: Tensor) -> nn.Module:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.detach())
        return layer

    hidden, chosen = torch.randn(9, 64), torch.stack([torch.randperm(4)[:2] for _ in range(9)])
    shares = torch.rand(9, 2)
    torch.testing.assert_close(SplitExperts(experts, plain)(hidden, chosen, shares), experts(hidden, chosen, shares))


def test_int4_says_which_matrix_it_cannot_take() -> None:
    backbone = build_backbone(small_text(hidden_size=32), 64)
    with pytest.raises(OptionError, match="multiple of 64 columns, got 32"):
        shrink_(backbone, "int4", CPU)


@pytest.mark.parametrize(("precision", "package"), [("int8", "torchao"), ("int4", "bitsandbytes")])
def test_a_missing_library_is_named(precision: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao.quantization", "bitsandbytes.nn.modules"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=rf"{package}: pip install 'diffasr\[quantised\]'"):
        shrink_(nn.Module(), precision, CPU)
