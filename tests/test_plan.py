"""The plan against bytes that torch really took, at small size on a CPU, and against itself at full size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import small_text
from torch import Tensor

from diffasr.cli import main
from diffasr.diffusion.fuse import fused
from diffasr.errors import OptionError
from diffasr.model import precision as quantisers
from diffasr.model.adapter import sketch
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import GemmaNetwork, Prompt, add_lora, build_backbone
from diffasr.model.info import config_26b
from diffasr.model.network import Speech
from diffasr.model.plan import (
    EVIDENCE,
    GIB,
    RESERVE,
    Row,
    Weights,
    Work,
    cache_bytes,
    offloaded,
    plan,
    prefill_bytes,
    render,
    spread,
    step_bytes,
    verdict,
    weigh,
)
from diffasr.model.projector import Projector

WIDTH = 16
FLOAT = 4
SHAPES = {
    "logits lead": {"vocab_size": 6000},
    "experts lead": {"vocab_size": 40, "hidden_size": 256, "moe_intermediate_size": 64},
    "inner experts lead": {"vocab_size": 40, "moe_intermediate_size": 512},
}


def network_of(changes: dict[str, Any]) -> GemmaNetwork:
    torch.manual_seed(0)
    backbone = build_backbone(small_text(num_experts=8, **changes), 256)
    add_lora(backbone, 2)
    return GemmaNetwork(
        WhisperEncoder(mels=8, width=WIDTH, heads=2, layers=1, hidden=16),
        Projector(speech_width=WIDTH, hidden=16, width=changes.get("hidden_size", 64), strides=3),
        backbone,
        Prompt(before=(2, 7, 8), after=(9,), languages=(10, 11, 12, 13, 14, 15), end=0),
    ).eval()  # fmt: skip


def peak_of(call: Callable[[], Any], folder: Path) -> tuple[Any, int]:
    """What ``call`` gives, and the most bytes beyond those before that torch's allocator held during it."""
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as watch:
        out = call()
    watch.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    now = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return out, peak


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_and_working_memory_are_within_a_tenth_of_what_was_measured(shape: str, tmp_path: Path) -> None:
    network = network_of(SHAPES[shape])
    text = network.backbone.config.get_text_config()
    work = Work(rows=4, canvas=192)
    speech = Speech(frames=torch.randn(4, 1500, WIDTH), lengths=torch.full((4,), 1500))
    canvas, lengths = torch.randint(40, (4, 192)), torch.full((4,), 192)
    previous = torch.randn(4, 192, text.vocab_size)
    prompt = 3 + 188 + 1 + 1
    with torch.inference_mode():  # torch keeps some buffers of the first call for good
        network.denoise(canvas, network.prefill(speech, None), lengths=lengths, previous=previous)

    cache, peak = peak_of(lambda: network.prefill(speech, None), tmp_path)
    held = [t for layer in cache.memory.keys_values.layers for t in (layer.keys, layer.values)]
    measured = sum(t.numel() * t.element_size() for t in [*held, cache.audio, cache.ctc])
    expected = cache_bytes(text, work, prompt=prompt, slots=188, plain=FLOAT)
    assert measured == pytest.approx(expected, rel=0.01)
    ready = cache_bytes(text, work, prompt=prompt, slots=188, plain=FLOAT) - cache.ctc.nbytes  # made at the end
    assert peak == pytest.approx(prefill_bytes(text, work, prompt=prompt, slots=188, plain=FLOAT) + ready, rel=0.1)

    step = lambda: network.denoise(canvas, cache, lengths=lengths, previous=previous)  # noqa: E731
    assert peak_of(step, tmp_path)[1] == pytest.approx(step_bytes(text, work, plain=FLOAT), rel=0.1)


def test_evidence_of_ctc_takes_so_many_arrays(tmp_path: Path) -> None:
    """On arrays large enough for nothing else to count."""
    labels, hints = torch.randn(1, 188, 3000), torch.zeros(1, 192, dtype=torch.long)
    openings = torch.arange(3000)
    logits = torch.randn(1, 192, 3000)

    def add() -> Tensor:
        return fused(logits, labels, hints, openings, 0.3)

    array = logits.nbytes
    assert peak_of(add, tmp_path)[1] + array == pytest.approx(EVIDENCE * array, rel=0.1)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_weights_are_within_a_tenth_of_what_is_stored(precision: Any) -> None:
    from test_precision import held_bytes

    network = network_of({})
    expected = weigh(network, precision, plain=FLOAT)
    with torch.no_grad():
        quantisers.shrink_(network.backbone, precision, torch.device("cpu"))
    assert expected.total == pytest.approx(held_bytes(network), rel=0.1)
    assert len(expected.layers) == 3
    assert expected.fixed > sum(p.numel() * FLOAT for p in network.projector.parameters())


@pytest.fixture(scope="module")
def system() -> GemmaNetwork:
    """The 26 B system without its weights."""
    return sketch(config_26b())


@pytest.fixture(scope="module")
def rows(system: GemmaNetwork) -> dict[str, Row]:
    return {row.precision: row for row in plan(system, Work(rows=1))}


def test_the_full_size(rows: dict[str, Row]) -> None:
    whole = rows["bfloat16"].weights
    assert whole.total == pytest.approx(2 * (25_293_083_264 + 88e6), rel=0.001), "the table of info, and the ear"
    assert len(whole.layers) == 30
    assert max(whole.layers) < 1.1 * min(whole.layers)
    assert 0.5 < rows["int8"].weights.total / whole.total < 0.53
    assert 0.28 < rows["int4"].weights.total / whole.total < 0.32
    array = 192 * 262_144 * 4
    assert all(row.logits == 6 * array for row in rows.values())
    assert rows["int8"].cache == rows["int4"].cache == rows["bfloat16"].cache


def test_more_at_once_takes_more(rows: dict[str, Row], system: GemmaNetwork) -> None:
    base = rows["int4"]
    for work in (Work(rows=2), Work(rows=1, canvas=256), Work(rows=8, canvas=16)):
        row = plan(system, work)[2]
        assert row.weights == base.weights
        assert row.logits == pytest.approx(
            base.logits * max(work.rows * work.canvas / 192, 188 / 768 * work.rows), rel=0.02
        )
        assert row.cache == work.rows * base.cache


def test_what_fits_which_card(rows: dict[str, Row]) -> None:
    def fits(memory: float, gpus: int = 1) -> list[bool]:
        return [spread(row, memory, gpus) is not None for row in rows.values()]

    assert fits(80) == [True, True, True]
    assert fits(40) == [False, True, True]
    assert fits(24) == [False, False, True]
    assert fits(16) == [False, False, False]
    assert fits(24, gpus=2) == [False, True, True]
    assert fits(24, gpus=3) == [True, True, True]


def row_of(layers: int) -> Row:
    return Row(precision="int8", weights=Weights(fixed=GIB, layers=(GIB,) * layers), cache=GIB, logits=0, activations=0)


def test_layers_fill_one_card_after_the_other() -> None:
    assert spread(row_of(10), RESERVE + 12, 1) == [10]
    assert spread(row_of(10), RESERVE + 11.5, 1) is None
    assert spread(row_of(10), RESERVE + 7, 2) == [5, 5], "fixed parts and cache stand on the first"
    assert spread(row_of(10), RESERVE + 1.5, 12) is None, "they have no room there"


def test_offload_is_the_least_that_makes_room() -> None:
    assert offloaded(row_of(10), RESERVE + 12) == 0
    assert offloaded(row_of(10), RESERVE + 11) == 2, "one layer's room for those that pass through"
    assert offloaded(row_of(10), RESERVE + 3) == 10
    assert offloaded(row_of(10), RESERVE + 2.9) is None
    assert verdict(row_of(10), RESERVE + 2.9, 1) == "too large, offloaded too"
    assert "with 2 layers on the host, 2.0 GiB over the bus a step" in verdict(row_of(10), RESERVE + 11, 1)
    assert verdict(row_of(10), RESERVE + 7, 2) == "fits, layers 0-4 | 5-9"


def test_the_command_prints_a_row_a_precision(system: GemmaNetwork, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "26b", "--plan", "--gpu-memory", "24", "--gpus", "2", "--batch", "2", "--canvas", "96"]) == 0
    expected = render(plan(system, Work(rows=2, canvas=96)), Work(rows=2, canvas=96), gpu_memory=24, gpus=2)
    assert capsys.readouterr().out == expected + "\n"
    assert [line.split()[0] for line in expected.splitlines()[2:5]] == ["bfloat16", "int8", "int4"]
    assert "2 x 24 GiB, windows at once: 2, canvas: 96" in expected


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (["26b", "--batch", "0"], "rows must be at least 1, got 0"),
        (["26b", "--gpus", "0"], "1 card at least, got 80 and 0"),
        (["26b", "--gpu-memory", "1"], "more than 1 GiB"),
    ],
)
def test_a_plan_of_nothing_is_refused(call: list[str], told: str) -> None:
    from diffasr.cli import parse, run

    with pytest.raises(OptionError, match=told):
        run(parse(["info", *call, "--plan"]))
