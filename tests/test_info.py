"""The published counts of the 26 B system, and the table that shows them."""

import pytest

from diffasr.model.gemma import add_lora, build_backbone
from diffasr.model.info import Description, Part, count, describe_26b, render


@pytest.fixture(scope="module")
def system() -> Description:
    return describe_26b()


def test_published_counts(system: Description) -> None:
    parts = {part.name: part for part in system.parts}
    assert parts["LoRA"].parameters == parts["LoRA"].trained == 22_978_560
    assert parts["projector"].parameters == pytest.approx(19.1e6, rel=0.002)
    assert system.trained == pytest.approx(42.1e6, rel=0.001)
    assert system.trained_share == pytest.approx(0.0016, abs=0.0001)
    assert system.trained_megabytes == pytest.approx(170, abs=2)
    assert (system.audio_tokens, system.width) == (188, 2816)
    assert 25e9 < system.total < 26e9, "26 B with the vision tower, which is dropped"
    assert [name for name, part in parts.items() if part.trained] == ["LoRA", "projector"]


def test_parts_add_up_to_every_parameter() -> None:
    text = {
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8, "layer_types": ["full_attention"],
        "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 8,
    }  # fmt: skip
    backbone = build_backbone(text, 16)
    add_lora(backbone, 3)
    parts = count(backbone)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in backbone.parameters())
    ins_and_outs = (16 + 16) + (16 + 8) + (16 + 16)  # q, k, o; the full layer has no v
    assert {part.name: part.trained for part in parts if part.trained} == {"LoRA": 2 * 3 * ins_and_outs}


def test_render_shows_each_part_and_the_total(system: Description) -> None:
    text = render(system)
    for part in (*system.parts, Part(name="total", parameters=system.total, trained=system.trained)):
        line = next(line for line in text.splitlines() if line.startswith(part.name))
        assert f"{part.parameters:,}" in line and f"{part.trained:,}" in line
