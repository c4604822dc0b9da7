"""Attention against torch's own and against its parts, and tables that cost nothing on meta."""

import subprocess
import sys

import torch
from torch import Tensor, nn

from diffasr.model.layers import Attention, Past, key_mask, table

WIDTH, HEADS = 16, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(WIDTH, HEADS).requires_grad_(False)


def test_it_is_torchs_multi_head_attention() -> None:
    ours, x = attention(), random(2, 5, WIDTH)
    torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).requires_grad_(False)
    weights = torch.cat((ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight))
    biases = torch.cat((ours.q_proj.bias, torch.zeros(WIDTH), ours.v_proj.bias))
    torchs.load_state_dict(
        {"in_proj_weight": weights, "in_proj_bias": biases}
        | {f"out_proj.{k}": v for k, v in ours.out_proj.state_dict().items()}
    )
    real = key_mask(torch.tensor([5, 3]), 5)
    expected = torchs(x, x, x, key_padding_mask=~real[:, 0, 0])[0]
    torch.testing.assert_close(ours(x, ours.keys_values(x), real), expected)


def test_it_is_its_parts() -> None:
    layer, x = attention(), random(2, 5, WIDTH)
    torch.testing.assert_close(layer.attend(*layer.queries_keys_values(x)), layer(x, layer.keys_values(x)))


def test_the_past_grows_by_what_is_read() -> None:
    past, layer, x = Past(), attention(), random(1, 5, WIDTH)
    assert past.length == 0
    past.grown(layer.keys_values(x[:, :2]))
    keys, values = past.grown(layer.keys_values(x[:, 2:]))
    assert past.length == 5
    for part, whole in zip((keys, values), layer.keys_values(x), strict=True):
        torch.testing.assert_close(part, whole)


def test_a_table_is_torchs_embedding_with_the_same_draws() -> None:
    torch.manual_seed(5)
    expected = nn.Embedding(7, 3).weight
    torch.manual_seed(5)
    assert torch.equal(table(7, 3).weight, expected)
    assert table(7, 3).weight.requires_grad


def test_on_meta_the_compiler_stays_away() -> None:
    """Loading it takes half a second and 60 MB, at every start."""
    lines = [
        "import sys, torch",
        "from diffasr.model.encoder import WhisperEncoder",
        "from diffasr.model.projector import Projector",
        "with torch.device('meta'):",
        "    WhisperEncoder(mels=8, width=16, heads=2, layers=1, hidden=32)",
        "    Projector(speech_width=16, hidden=8, width=16, strides=2, layers=1)",
        "print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
