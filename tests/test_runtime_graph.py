"""Pieces of a graph against torch's own: near where numbers are rounded, the same where they are not, and each row
blind to those beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffasr.model.stored import quantise
from diffasr.runtime import graph as module
from diffasr.runtime.graph import FULL, HALF, Graph, reach
from diffasr.runtime.weights import Weights

Make = Callable[..., Callable[..., Tensor]]
REACH = reach()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def same(ours: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def in_int8(**layers: Tensor) -> dict[str, Tensor]:
    """Weights by name, each with its scale."""
    found = {}
    for name, value in layers.items():
        found[f"{name}.weight"], found[f"{name}.weight.scale"] = quantise(value)
    return found


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A computation out of stored tensors and what is to be written of them."""

    def made(stored: dict[str, Tensor], write: Callable[..., str], *, reach: int = REACH) -> Callable[..., Tensor]:
        save_file(stored or {"nothing": torch.zeros(1)}, tmp_path / "some.safetensors")
        graph = Graph(Weights(tmp_path / "some.safetensors"), reach=reach)
        sessions: list[InferenceSession] = []

        def ran(*arrays: Tensor) -> Tensor:
            if not sessions:
                names = [graph.input(f"in {n}", [f"{n} {d}" for d in range(a.ndim)]) for n, a in enumerate(arrays)]
                graph.output("out", write(graph, *names))
                sessions.append(graph.session(threads=1))
            feeds = {f"in {n}": array.numpy() for n, array in enumerate(arrays)}
            return torch.from_numpy(sessions[0].run(["out"], feeds)[0])

        return ran

    return made


def layer(graph: Graph, x: str) -> str:
    return graph.linear(x, "layer")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_layer_is_torchs(make: Make, kind: str, with_bias: bool) -> None:
    weight, bias = random(24, 64), random(24, seed=1)
    stored = {"layer.weight": weight.to(getattr(torch, kind))} if kind != "int8" else in_int8(layer=weight)
    run = make(stored | ({"layer.bias": bias.half() if kind == "float16" else bias} if with_bias else {}), layer)
    for rows in (1, 5, 300):
        x = random(rows, 64, seed=2)
        exact = F.linear(x, weight, bias if with_bias else None)
        assert run(x).shape == exact.shape
        assert distance(run(x), exact) < {"float32": 1e-6, "float16": 1e-3, "int8": 0.02}[kind]


def test_several_layers_of_one_input_stand_behind_one_another(make: Make) -> None:
    stored = in_int8(a=random(8, 16), b=random(4, 16, seed=1), c=random(8, 16, seed=2)) | {"b.bias": random(4, seed=3)}
    x = random(5, 16, seed=4)
    together = make(stored, lambda graph, x: graph.linear(x, "a", "b", "c"))(x)
    parts = [make(stored, lambda graph, x, name=name: graph.linear(x, name))(x) for name in "abc"]
    assert torch.equal(together, torch.cat(parts, dim=1))


@pytest.mark.parametrize("reach", sorted({REACH, HALF}))
def test_whole_numbers_come_out_exactly_even_the_largest(make: Make, reach: int) -> None:
    dice = torch.Generator().manual_seed(0)
    codes = torch.randint(-reach, reach + 1, (9, 512), generator=dice).float()
    codes[:, 0] = reach  # so that a step of the scale is 1
    rows = torch.randint(-127, 128, (16, 512), generator=dice).to(torch.int8)
    rows[0], codes[0] = 127, reach  # sums that would saturate 16 bits
    rows[1], codes[1] = -127, -reach
    run = make({"layer.weight": rows, "layer.weight.scale": torch.ones(16)}, layer, reach=reach)
    torch.testing.assert_close(run(codes), codes @ rows.float().T, rtol=2e-7, atol=0)


def test_with_a_shorter_reach_it_is_a_little_less_near(make: Make) -> None:
    weight, x = random(24, 64), random(50, 64, seed=2)
    far, near = (distance(make(in_int8(layer=weight), layer, reach=most)(x), x @ weight.T) for most in (HALF, REACH))
    assert far < 0.04
    assert near < far or REACH == HALF


@pytest.mark.parametrize(
    ("machine", "flags", "most"),
    [
        ("x86_64", "avx2 avx512_vnni", FULL), ("AMD64", "avx2 avx_vnni", FULL), ("x86_64", "avx2 avx512f", HALF),
        ("x86_64", None, HALF), ("arm64", None, FULL), ("aarch64", "asimd", FULL),
    ],
)  # fmt: skip
def test_numbers_go_as_far_as_the_machine_adds_them_up_rightly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str | None, most: int
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: fpu {flags} sse\n", encoding="utf-8")
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "Path", lambda _: tmp_path / "cpuinfo")
    assert reach() == most


def test_the_loudness_of_one_row_does_not_touch_another(make: Make) -> None:
    run, x = make(in_int8(layer=random(8, 32)), layer), random(6, 32, seed=1)
    loud = x.clone()
    loud[3] *= 1000
    assert torch.equal(run(x)[:3], run(loud)[:3])
    assert torch.equal(run(x)[4:], run(loud)[4:])
    torch.testing.assert_close(run(loud)[3], 1000 * run(x)[3])
    assert torch.equal(run(torch.zeros(2, 32)), torch.zeros(2, 8))


def test_rows_give_in_parts_what_they_give_together(make: Make) -> None:
    run, x = make(in_int8(layer=random(24, 64)) | {"layer.bias": random(24)}, layer), random(300, 64, seed=2)
    for sizes in ([1] * 300, [299, 1], [77, 223]):
        assert torch.equal(run(x), torch.cat([run(part) for part in x.split(sizes)]))


@pytest.mark.parametrize(("stride", "size"), [(1, 9), (1, 1), (2, 9), (2, 10), (2, 1)])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_convolution_is_torchs(make: Make, kind: str, stride: int, size: int) -> None:
    weight, bias, x = random(10, 6, 3), random(10, seed=1), random(6, size, seed=2)
    stored = {"conv.weight": weight.to(getattr(torch, kind))} if kind != "int8" else in_int8(conv=weight)
    run = make(stored | {"conv.bias": bias}, lambda graph, x: graph.convolution(x, "conv", stride=stride))
    exact = F.conv1d(x, weight, bias, stride=stride, padding=1).T
    assert run(x.T.contiguous()).shape == exact.shape
    assert distance(run(x.T.contiguous()), exact) < {"float32": 1e-6, "float16": 1e-3, "int8": 0.03}[kind]


def test_one_graph_convolves_any_size(make: Make) -> None:
    weight = random(10, 6, 3)
    run = make({"conv.weight": weight}, lambda graph, x: graph.convolution(x, "conv", stride=2))
    for size in (1, 2, 9, 10):
        x = random(6, size, seed=2)
        same(run(x.T.contiguous()), F.conv1d(x, weight, stride=2, padding=1).T)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_some_rows_of_a_table_score_what_they_score_among_all(make: Make, kind: str) -> None:
    weight, hidden = random(100, 16), random(5, 16, seed=1)
    stored = {"table.weight": weight.to(getattr(torch, kind))} if kind != "int8" else in_int8(table=weight)
    every = make(stored, lambda graph, x: graph.scores(x, "table", None))(hidden)
    assert distance(every, hidden @ weight.T) < 0.02
    for rows in ([5, 1, 70], [2, 2], [99]):
        some = make(stored, lambda graph, x, rows=rows: graph.scores(x, "table", rows))(hidden)
        torch.testing.assert_close(some, every[:, rows], rtol=1e-6, atol=1e-6)


def test_a_norm_is_torchs(make: Make) -> None:
    weight, bias, x = random(12), random(12, seed=1), 3.0 + 5.0 * random(7, 12, seed=2)
    run = make({"norm.weight": weight, "norm.bias": bias}, lambda graph, x: graph.norm(x, "norm"))
    same(run(x), F.layer_norm(x, (12,), weight, bias))


def test_gelu_is_torchs(make: Make) -> None:
    x = torch.linspace(-9, 9, 1001).view(7, 143)
    torch.testing.assert_close(make({}, lambda graph, x: graph.gelu(x))(x), F.gelu(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("queries", "keys", "heads"), [(5, 9, 4), (1, 1, 1), (7, 7, 2)])
def test_attention_is_torchs(make: Make, queries: int, keys: int, heads: int) -> None:
    parts = [2.0 * random(size, 16, seed=n) for n, size in enumerate((queries, keys, keys))]
    apart = [part.view(1, len(part), heads, -1).transpose(1, 2) for part in parts]
    run = make({}, lambda graph, q, k, v: graph.attention(q, k, v, heads=heads))
    same(run(*parts), F.scaled_dot_product_attention(*apart)[0].transpose(0, 1).flatten(1))


def test_channels_are_split_among_heads(make: Make) -> None:
    x = random(5, 12)
    assert torch.equal(make({}, lambda graph, x: graph.split(x, 3))(x), x.view(1, 5, 3, 4).transpose(1, 2))


def test_what_is_added_to_scores_hides_what_is_not_to_be_seen(make: Make) -> None:
    parts = [2.0 * random(6, 16, seed=n) for n in range(3)]
    apart = [part.view(1, 6, 2, -1).transpose(1, 2) for part in parts]
    run = make({}, lambda graph, q, k, v, sight: graph.attention(q, k, v, heads=2, added=sight))
    hidden = torch.full((6, 6), -1e30).triu(1)[None, None]
    exact = F.scaled_dot_product_attention(*apart, is_causal=True)
    same(run(*parts, hidden), exact[0].transpose(0, 1).flatten(1))
    slope = random(1, 1, 6, 6, seed=9)
    same(run(*parts, slope), F.scaled_dot_product_attention(*apart, slope)[0].transpose(0, 1).flatten(1))


def test_equal_constants_are_one_and_unequal_ones_are_not(tmp_path: Path) -> None:
    save_file({"nothing": torch.zeros(1)}, tmp_path / "some.safetensors")
    graph = Graph(Weights(tmp_path / "some.safetensors"))
    assert graph.constant(1.0) == graph.constant(1.0)
    assert graph.constant([1, 2]) == graph.constant([1, 2])
    different = [
        graph.constant(v) for v in (1.0, 2.0, [1], [[1]], np.array([1], np.uint8), np.array([1.0], np.float32))
    ]
    assert len(set(different)) == len(different)
