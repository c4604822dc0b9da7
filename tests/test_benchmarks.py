"""The device benchmarks run from end to end, at tiny size on a CPU: their figures here say nothing."""

import re
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def printed(call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    name, *words = call.split()
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("self_conditioning", ["", " --self-conditioning"])
def test_a_step_of_a_gemma(
    self_conditioning: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = "gemma_step --tiny --batches 2,1 --canvas 16 --steps 1,4 --rounds 1 --bandwidth 5 --tflops 0.5"
    out = printed(call + self_conditioning, monkeypatch, capsys)
    assert "none of these figures says anything of the 26 B system" in out
    assert "measured or given: 5 GB/s, 0.50 Tflop/s" in out
    rows = re.findall(r"^\| ([12]) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"] and all(float(ms) > 0 for row in rows for ms in row[1:])
    speeds = {
        n: [float(s) for s in rest.split(" | ")[:2]] for n, rest in re.findall(r"^\| (\d) steps \| (.+)\|$", out, re.M)
    }
    assert speeds.keys() == {"1", "4"} and all(one > four for one, four in zip(speeds["1"], speeds["4"], strict=True))


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
