"""The plan of a whisper against bytes that torch really took, and published sizes without their weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY
from test_plan import peak_of
from tokenizers import Tokenizer as Backend

from diffasr.cli import main
from diffasr.model import checkpoint
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.loaded import Model
from diffasr.model.plan import GIB, Work
from diffasr.model.plan_whisper import cache_bytes, hear_bytes, plan, sketch, step_bytes
from diffasr.model.projector import Projector
from diffasr.model.whisper import WhisperDecoder, WhisperNetwork

FLOAT = 4
SHAPES: dict[str, dict[str, int]] = {
    "wide": {"width": 64, "heads": 1, "layers": 2, "hidden": 256},
    "many heads": {"width": 32, "heads": 8, "layers": 6, "hidden": 64},
    "many words": {"width": 32, "heads": 1, "layers": 1, "hidden": 64, "vocabulary": 6000},
}


def network_of(shape: dict[str, int]) -> tuple[WhisperNetwork, ModelConfig]:
    sizes = {"vocabulary": VOCABULARY} | shape
    width, heads, hidden = shape["width"], shape["heads"], shape["hidden"]
    config = ModelConfig(
        name="x", encoder=EncoderConfig(mels=8, width=width, heads=heads, layers=2, hidden=hidden),
        projector=ProjectorConfig(hidden=32, strides=2), decoder=DecoderConfig(**sizes),
    )  # fmt: skip
    torch.manual_seed(0)
    network = WhisperNetwork(
        WhisperEncoder(mels=8, width=width, heads=heads, layers=2, hidden=hidden),
        Projector(speech_width=width, hidden=32, width=width, strides=2),
        WhisperDecoder(**sizes), torch.zeros(6, 4, dtype=torch.long), torch.arange(VOCABULARY),
    )  # fmt: skip
    return network.eval().requires_grad_(False), config


@pytest.mark.parametrize("shape", SHAPES)
def test_each_moment_is_within_a_tenth_of_what_was_measured(shape: str, tmp_path: Path) -> None:
    network, config = network_of(SHAPES[shape])
    vocabulary = config.decoder.vocabulary  # type: ignore[union-attr]
    work = Work(rows=4, canvas=192)
    mel, lengths = torch.randn(4, 8, 3000), torch.full((4,), 3000)
    canvas, places, previous = torch.randint(40, (4, 192)), torch.full((4,), 192), torch.randn(4, 192, vocabulary)

    def step() -> Any:
        return network.denoise(canvas, cache, lengths=places, previous=previous)

    with torch.inference_mode():  # torch keeps some buffers of the first call for good
        cache = network.prefill(network.hear(mel, lengths), None)
        step()
    speech, peak = peak_of(lambda: network.hear(mel, lengths), tmp_path)
    assert peak == pytest.approx(hear_bytes(config, work, plain=FLOAT), rel=0.1)
    cache, _ = peak_of(lambda: network.prefill(speech, None), tmp_path)
    held = [cache.audio, cache.ctc, *(t for pair in cache.memory[0] for t in pair)]
    assert sum(t.nbytes for t in held) == cache_bytes(network, config, work, plain=FLOAT)
    assert peak_of(step, tmp_path)[1] == pytest.approx(step_bytes(network, config, work, plain=FLOAT), rel=0.1)


def write_published(folder: Path, backend: Backend, **changes: int) -> Path:
    """Config and tokenizer of large-v3-turbo, without weights."""
    sizes = {
        "model_type": "whisper", "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "decoder_layers": 4,
        "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120,
        "max_source_positions": 1500, "max_target_positions": 448, "vocab_size": 51_866,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes | changes))
    (folder / "tokenizer.json").write_text(backend.to_str())
    return folder


def test_a_published_size_is_counted_without_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_any_whisper import whisper_tokenizer

    folder = write_published(tmp_path / "turbo", whisper_tokenizer(51_866))
    network, config = sketch(folder)
    size = sum(p.numel() for name, p in network.named_parameters() if name.startswith(("encoder.", "decoder.")))
    added = sum(p.numel() for p in network.decoder.conditioning.parameters()) + network.decoder.future.numel()
    assert size - added == 808_878_080, "openai/whisper-large-v3-turbo has 809 M parameters"
    assert config.encoder.mels == 128
    full, half = plan(network, config, Work())
    assert (full.precision, half.precision) == ("float32", "bfloat16")
    assert full.weights.total == 2 * half.weights.total and full.cache == 2 * half.cache
    assert half.weights.total > 2 * 808_878_080
    assert main(["info", str(folder), "--plan", "--gpu-memory", "4", "--gpus", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["float32", "bfloat16"]
    assert [line.split("  ")[-1] for line in lines[2:4]] == [
        "fits" if row.total <= 3 * GIB else "too large" for row in (full, half)
    ] == ["too large", "fits"]  # fmt: skip
    assert "stands on one card" in lines[-1]


def test_more_windows_and_places_take_more() -> None:
    network, config = network_of(SHAPES["wide"])
    small, rows, places = (plan(network, config, w)[0] for w in (Work(rows=1), Work(rows=3), Work(rows=1, canvas=400)))
    assert rows.cache == 3 * small.cache and rows.logits == 3 * small.logits
    assert places.cache == small.cache and places.logits == pytest.approx(small.logits * 400 / 192)
    assert rows.weights == small.weights == places.weights


def test_a_checkpoint_of_ours_is_planned_by_its_own_config(model: Model, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, model)
    network, config = sketch(tmp_path)
    assert config == model.config
    shapes = {name: p.shape for name, p in model.network.named_parameters()}
    assert {name: p.shape for name, p in network.named_parameters()} == shapes
