"""The device benchmarks run from end to end, at tiny size on a CPU: their figures here say nothing."""

import argparse
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_gemma import speech_of, tiny_network, tokens_of
from test_replay import Tally
from torch import Tensor

from diffasr.model.gemma import GemmaNetwork
from diffasr.model.network import Cache, Speech
from diffasr.model.replay import Recording, Replays

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def printed(call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    name, *words = call.split()
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("self_conditioning", ["", " --self-conditioning"])
def test_a_step_of_a_gemma(
    self_conditioning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = "gemma_step --tiny --batches 2,1 --canvas 16 --steps 1,4 --rounds 1 --bandwidth 5 --tflops 0.5"
    out = printed(f"{call}{self_conditioning} --out {tmp_path / 'figures.json'}", monkeypatch, capsys)
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["floor"]["bandwidth"] == 5e9 and figures["batches"].keys() == {"1", "2"}
    assert 2 <= figures["batches"]["1"]["experts"] <= 4, "two of four are chosen, at least"
    assert "none of these figures says anything of the 26 B system" in out
    assert "measured or given: 5 GB/s, 0.50 Tflop/s" in out
    rows = re.findall(r"^\| ([12]) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"] and all(float(ms) > 0 for row in rows for ms in row[1:])
    speeds = {
        n: [float(s) for s in rest.split(" | ")[:2]] for n, rest in re.findall(r"^\| (\d) steps \| (.+)\|$", out, re.M)
    }
    assert speeds.keys() == {"1", "4"} and all(one > four for one, four in zip(speeds["1"], speeds["4"], strict=True))


@pytest.mark.parametrize("fault", ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_what_was_measured_is_told_when_a_batch_does_not_fit(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = GemmaNetwork.prefill

    def prefill(self: GemmaNetwork, speech: Speech, languages: Tensor | None) -> Cache:
        if len(speech.lengths) > 1:
            raise RuntimeError(f"CUDA error: {fault}")
        return plain(self, speech, languages)

    monkeypatch.setattr(GemmaNetwork, "prefill", prefill)
    call = "gemma_step --tiny --canvas 16 --rounds 1 --bandwidth 5 --tflops 0.5"
    out = printed(f"{call} --batches 1,2,4", monkeypatch, capsys)
    assert "a batch of 2 does not fit" in out and "batch 4" not in out
    assert re.search(r"^\| 16 steps \| \d+ \| 1 \|$", out, re.MULTILINE)
    assert "does not fit" in printed(f"{call} --batches 2", monkeypatch, capsys)
    assert "no batch of 2" in printed(f"{call} --batches 1,2 --limit 0", monkeypatch, capsys)


@pytest.mark.parametrize(
    "call",
    [
        "gemma-tiny --rows 1 --text 8 --steps 1 --recompute --peak 1",
        "whisper-tiny --rows 1 --seconds 1 --text 8 --steps 1",
    ],
)
def test_a_training_step(call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(f"training {call} --device cpu", monkeypatch, capsys)
    facts = dict(re.findall(r"^  (\S.*?)  +(.+)$", out, re.MULTILINE))
    assert {"trained parameters", "step", "tokens a second", "peak memory", "operations a step"} <= facts.keys()
    assert ("utilisation" in facts) == ("--peak" in call)
    assert int(facts["trained parameters"].replace(",", "")) > 1000
    assert float(facts["operations a step"].split()[0]) > 0


def test_replays_are_measured_and_the_first_error_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bench = runpy.run_path(str(BENCHMARKS / "gemma_step.py"))
    kept = bench["replayed"].__globals__
    kept["Replays"], kept["GraphRecorder"] = lambda new: Replays(new, "cpu"), lambda mode: Tally()
    network = tiny_network().requires_grad_(False)
    network.backbone.set_experts_implementation("batched_mm")
    with torch.inference_mode():
        cache = network.prefill(speech_of([40]), None)
        canvas, lengths = tokens_of(1, 8), torch.tensor([8])
        calls = {
            "replayed prefill": lambda: network.prefill(speech_of([40]), None),
            "replayed step": lambda: network.denoise(canvas, cache, lengths=lengths),
        }
        found = bench["replayed"](network, calls, 1, argparse.Namespace(rounds=1))
        assert found.keys() == {"replayed prefill", "replayed step", "graph", "difference"}
        assert found["difference"] == 0 < found["graph"] and capsys.readouterr().out == ""
        kept["GraphRecorder"] = lambda mode: refuse
        assert bench["replayed"](network, calls, 1, argparse.Namespace(rounds=1)) == {}
    told = capsys.readouterr().out
    for mode in ("thread_local", "relaxed"):
        assert re.search(f"batch 1, capture mode {mode}: .*ValueError: not permitted, in .* line .*raise", told)


def refuse(work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
    try:
        raise ValueError("not permitted")
    except ValueError as error:
        raise RuntimeError("a previous error") from error
