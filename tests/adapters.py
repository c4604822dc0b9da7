"""Small gemma checkpoints to test with: a language model and a Whisper on disk, and adapters for them."""

from pathlib import Path
from typing import Any

import torch
from conftest import VOCABULARY, tiny_tokenizer, tiny_whisper

from diffasr.model.adapter import from_gemma
from diffasr.model.config import ProjectorConfig
from diffasr.model.gemma import build_backbone
from diffasr.model.loaded import Model

BRIDGE = ProjectorConfig(hidden=24, strides=3)
SPEECH_WIDTH = 32
RANK = 2


def small_text(**changes: Any) -> dict[str, Any]:
    """A language model whose matrices have a multiple of 64 columns, which NF4 needs."""
    return {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 16,
        "global_head_dim": 32, "sliding_window": 256, "max_position_embeddings": 1024, "num_experts": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "top_k_experts": 2,
        "moe_intermediate_size": 64, "initializer_range": 0.1,
    } | changes  # fmt: skip


def write_sources(folder: Path) -> tuple[Path, Path]:
    """A DiffusionGemma with its tokenizer, and a Whisper, as their own repositories hold them."""
    torch.manual_seed(5)
    build_backbone(small_text(), 64).save_pretrained(folder / "gemma")
    tiny_tokenizer().backend.save(str(folder / "gemma" / "tokenizer.json"))
    tiny_whisper(mels=80, positions=1500).save_pretrained(folder / "whisper")
    return folder / "gemma", folder / "whisper"


def adapter_model(sources: tuple[Path, Path], *, seed: int = 0) -> Model:
    """An adapter on ``sources`` that has an effect: its LoRA is as if trained."""
    torch.manual_seed(seed)
    model = from_gemma(*sources, name="tiny-gemma", projector=BRIDGE, rank=RANK, dtype=torch.float32)
    for name, parameter in model.network.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.network.eval().requires_grad_(False)
    return model
