"""The published counts of the 26 B system, the table that shows them, and what is told of other models."""

from pathlib import Path

import huggingface_hub
import pytest
from adapters import adapter_model, write_sources
from conftest import VOCABULARY, random_model
from huggingface_hub import errors

from diffasr.cli import main
from diffasr.errors import ModelError
from diffasr.model import checkpoint, hub
from diffasr.model.adapter import WHISPER
from diffasr.model.gemma import GEMMA, add_lora, build_backbone
from diffasr.model.info import Description, Part, config_26b, count, describe, render, summary
from diffasr.model.loaded import Model


@pytest.fixture(scope="module")
def system() -> Description:
    return describe(config_26b())


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


def test_a_summary_counts_the_weights(model: Model) -> None:
    lines = summary(model).splitlines()
    counts = {line[:19].strip(): int(line[19:].split()[0].replace(",", "")) for line in lines[1:-1]}
    whole = counts.pop("all")
    assert whole == sum(p.numel() for p in model.network.parameters())
    assert 0.9 * whole < sum(counts.values()) < whole
    assert counts["token embedding"] == VOCABULARY * 32


def test_a_gemma_is_described_without_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = write_sources(tmp_path)
    made = adapter_model(sources)
    checkpoint.save(tmp_path / "adapter", made)
    for place in (*sources, tmp_path / "adapter"):
        (place / "model.safetensors").unlink()
    for place, terms in ((sources[0], "terms-of-gemma"), (sources[1], "mit")):
        (place / "README.md").write_text(f"---\nlicense: {terms}\n---\n")
    assert main(["info", str(tmp_path / "adapter")]) == 0
    shown = capsys.readouterr().out
    backbone = sum(p.numel() for p in made.network.backbone.parameters())
    bridge = sum(p.numel() for p in made.network.projector.parameters())
    described = describe(made.config)
    assert described.total == backbone + bridge
    assert render(described) in shown
    licences = [line for line in shown.splitlines() if line.startswith("licence of ")]
    assert [line.split(": ")[0] for line in licences] == [
        f"licence of {place}" for place in (tmp_path / "adapter", *sources)
    ], "one line a repository"
    assert "terms-of-gemma" in licences[1] and "mit" in licences[2]


def test_the_references_repository_is_described_without_its_file(
    system: Description, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def refuse(name: str, **_: object) -> str:
        asked.append(name)
        raise errors.LocalEntryNotFoundError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert main(["info", hub.REFERENCE]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(render(system))
    assert asked == [hub.REFERENCE, GEMMA, WHISPER], "once each, for their cards alone"
    assert [f"licence of {name}: see https://huggingface.co/{name}" for name in asked] == shown.splitlines()[-3:]


def test_info_of_a_whisper_model_names_its_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = random_model()
    checkpoint.save(tmp_path, made)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown == f"{summary(made)}\nlicence of {tmp_path}: apache-2.0 ({tmp_path / 'README.md'})\n"


def test_a_whisper_config_is_not_described_as_a_gemma(model: Model) -> None:
    with pytest.raises(ModelError, match="whisper backbone, not gemma"):
        describe(model.config)
