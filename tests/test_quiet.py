"""Sounds without a word: made the same each time, and counted in words a minute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffasr.audio import SAMPLE_RATE_HZ, load_audio
from diffasr.errors import OptionError
from diffasr.evaluate.quiet import KINDS, cells, false_text, make, quiet_set, words_in
from diffasr.evaluate.report import build_report
from diffasr.evaluate.run import evaluate
from diffasr.evaluate.systems import EvaluationOptions
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_are_whole_and_the_same_each_time(kind: str) -> None:
    sound = make(kind, 1.5)
    assert (len(sound), sound.dtype) == (24_000, np.float32)
    assert np.abs(sound).max() <= 1
    np.testing.assert_array_equal(load_audio(sound), make(kind, 1.5))
    assert np.ptp(sound) > 0 or kind in ("silence", "dc")


def test_only_chance_depends_on_the_seed() -> None:
    for kind in KINDS:
        assert np.array_equal(make(kind, 1), make(kind, 1, seed=1)) == (kind in ("silence", "dc", "hum")), kind


@pytest.mark.parametrize(("kind", "slope"), [("white", 0), ("pink", -1), ("brown", -2)])
def test_colours_of_noise_are_right(kind: str, slope: float) -> None:
    power = np.abs(np.fft.rfft(make(kind, 20))) ** 2
    hz = np.arange(len(power)) / 20
    low, high = (power[(hz > a) & (hz < 2 * a)].mean() for a in (100, 3200))
    assert np.log2(high / low) / 5 == pytest.approx(slope, abs=0.1)


def test_the_hum_is_that_of_the_mains() -> None:
    assert np.abs(np.fft.rfft(make("hum", 2))).argmax() / 2 == 50


def test_a_set_is_named_by_seconds_and_language() -> None:
    data = quiet_set("quiet:3:zh")
    assert [c.id for c in data.clips] == list(KINDS)
    assert {(c.duration, len(c.audio) / SAMPLE_RATE_HZ, c.language, c.text) for c in data.clips} == {(3, 3, "zh", "")}
    assert quiet_set("quiet:").name == "quiet:10:en"
    for spec in ("quiet:0", "quiet:x", "quiet:3:xx"):
        with pytest.raises(OptionError, match=spec):
            quiet_set(spec)
    with pytest.raises(OptionError, match="'rain'"):
        make("rain", 1)


def test_words_are_counted_as_they_are_written() -> None:
    assert words_in("Don't. 你好吗 OK, 3 !") == 6
    assert words_in("वह चाय पी रहा है।") == 5
    assert words_in(" … ") == 0


def row(kind: str, text: str, system: str = "ctc", seconds: float = 30.0) -> dict[str, Any]:
    return {
        "set": "quiet:30:en", "system": system, "id": kind, "hypothesis": text, "duration": seconds, "decoder": "ctc",
        "steps": None, "seed": None, "language": "en", "reference": "", "seconds": {}, "found": None,
    }  # fmt: skip


def test_rates_are_words_a_minute() -> None:
    (found,) = false_text([row("hum", "thank you"), row("white", ""), row("white", "you", seconds=60)])
    assert found["words_a_minute"] == pytest.approx(3 / 2)
    assert found["kinds"]["hum"] == 4
    assert found["kinds"]["white"] == pytest.approx(1 / 1.5)
    assert found["kinds"]["dc"] is None
    (line,) = cells([found])
    assert line[:3] == ["quiet:30:en", "ctc", "1.5"]
    assert len(line) == 3 + len(KINDS)


def test_quiet_rows_are_in_no_other_figure() -> None:
    said = row("a", "abc") | {"set": "dev", "reference": "abd", "seconds": {"text": 1.0}}
    alone, both = build_report([said], "basic", {}), build_report([said, row("hum", "you")], "basic", {})
    assert both["quiet"][0]["words_a_minute"] == 2
    assert both | {"quiet": []} == alone


def test_evaluate_hears_a_quiet_set_as_users_do(model: Model, tmp_path: Path) -> None:
    save(tmp_path / "tiny", model)
    options = EvaluationOptions(decoders=("ctc", "seeded"), steps=(1,), threads=1)
    evaluate(tmp_path / "tiny", ["quiet:1"], options, tmp_path / "out")
    from diffasr.evaluate.page import render
    from diffasr.evaluate.report import write_report

    report = write_report(tmp_path / "out", "basic", tmp_path / "out")
    rates = {f["system"]: f["words_a_minute"] for f in report["quiet"]}
    assert rates["ctc"] > 0, "an untrained CTC writes nonsense"
    assert rates["seeded-1"] == 0, "with the detector before it nothing is decoded"
    assert "words a minute" in render(report)
