"""A log gives its curves whole: steps go on through the stages, what was done twice counts once."""

import json
from pathlib import Path

import pytest

from diffasr.errors import OptionError
from diffasr.evaluate.page import render
from diffasr.evaluate.report import build_report
from diffasr.evaluate.training_log import POINTS, read_log


def write(path: Path, entries: list[dict[str, object]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries) + end, encoding="utf-8")
    return path


def test_stages_follow_each_other_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [{"stage": "ctc", "step": s, "ctc": 9.0} for s in (1, 2, 3)]
    entries += [{"stage": "ctc", "step": 3, "ctc": 4.0, "cer_ctc": 0.5, "cer_ctc_en": 0.4}]  # killed, gone on
    entries += [{"stage": "denoise", "step": s, "ar": 3.0, "diffusion": 2.0} for s in (1, 2)]
    entries[-1] |= {"cer_ctc": 0.5, "cer_ar": 0.75, "cer_diffusion": 0.25}
    found = read_log(write(tmp_path / "log.jsonl", entries, end='{"stage": "denoi'))
    assert found == {
        "stages": [{"name": "ctc", "after": 0, "steps": 3}, {"name": "denoise", "after": 3, "steps": 2}],
        "losses": {"ctc": [[1, 9], [2, 9], [3, 4]], "ar": [[4, 3], [5, 3]], "diffusion": [[4, 2], [5, 2]]},
        "rates": {"cer_ctc": [[3, 0.5], [5, 0.5]], "cer_ar": [[5, 0.75]], "cer_diffusion": [[5, 0.25]]},
    }
    page = render(build_report([], "basic", {}, training=found))
    assert "Steps: ctc 3, denoise 2." in page
    assert "diffusion loss 2.00, dev cer ctc 50.0 %, dev cer ar 75.0 %, dev cer diffusion 25.0 %." in page


def test_what_a_run_did_before_it_went_back_is_left_out(tmp_path: Path) -> None:
    done = [("a", 1, 9.0), ("a", 2, 8.0), ("b", 1, 7.0), ("b", 2, 6.0), ("b", 3, 5.0), ("b", 2, 4.0), ("a", 2, 3.0)]
    curves = []
    for size in (5, 6, 7):
        entries: list[dict[str, object]] = [{"stage": s, "step": n, "ctc": v} for s, n, v in done[:size]]
        curves.append([v for _, v in read_log(write(tmp_path / "log.jsonl", entries))["losses"]["ctc"]])
    assert curves == [[9, 8, 7, 6, 5], [9, 8, 7, 4], [9, 3]]


def test_a_long_curve_is_thinned_without_losing_its_mean(tmp_path: Path) -> None:
    steps = 4 * POINTS
    found = read_log(
        write(tmp_path / "log.jsonl", [{"stage": "a", "step": s, "ctc": float(s)} for s in range(1, steps + 1)])
    )
    curve = found["losses"]["ctc"]
    assert len(curve) == POINTS
    assert curve[-1][0] == steps
    assert sum(value for _, value in curve) / POINTS == pytest.approx((steps + 1) / 2)


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", '{"stage": "a", "step": "b"}\n', "[1]\n"])
def test_what_is_no_log_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=r"odd\.jsonl"):
        read_log(path)
    with pytest.raises(OptionError, match="diffasr train"):
        read_log(tmp_path / "none.jsonl")
