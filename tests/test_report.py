"""Figures are those that jiwer finds, and the sentences say what the figures say."""

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest

from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.page import render
from diffasr.evaluate.report import build_report, write_report

WORDS = ["alpha beta", "gamma delta", "one two three", "four", "five six", "seven eight", "nine ten", "eleven"]


def row(clip: int, system: str, hypothesis: str, **other: Any) -> dict[str, Any]:
    decoder, _, steps = system.partition("-")
    return {
        "system": system, "decoder": decoder, "steps": int(steps) if steps else None, "start": None,
        "seed": 0 if steps else None, "set": "dev", "id": str(clip), "audio": "", "duration": 2.0,
        "language": "en", "speaker": f"s{clip % 3}", "found": None, "reference": WORDS[clip % len(WORDS)],
        "hypothesis": hypothesis, "seconds": {"encoder": 0.5, "text": 0.5}, "calls": {"encoder": 1.0}, "batch": 1,
    } | other  # fmt: skip


def both(good: str, bad: str, *, language: str = "en") -> list[dict[str, Any]]:
    """Rows in which one system is right and the other has no first letter."""
    numbers = range(len(WORDS))
    return [row(n, good, WORDS[n], language=language) for n in numbers] + [
        row(n, bad, WORDS[n][1:], language=language) for n in numbers
    ]


def score_of(report: dict[str, Any], system: str, language: str) -> dict[str, Any]:
    (found,) = [s for s in report["scores"] if (s["system"], s["language"]) == (system, language)]
    return dict(found)


def test_rates_and_counts_are_jiwers() -> None:
    said = ["alpha bita", "Gamma, delta!", "one three", "four five", "", "seven eight", "nein ten", "elf"]
    rows = [row(n, "ctc", text) for n, text in enumerate(said)]
    found = score_of(build_report(rows, "basic", {}), "ctc", "en")
    pairs = WORDS, [normalise(text, "en") for text in said]
    words, letters = jiwer.process_words(*pairs), jiwer.process_characters(*pairs)
    for measure, expected, rate in (("wer", words, words.wer), ("cer", letters, letters.cer)):
        mine = found[measure]
        assert mine["value"] == pytest.approx(rate)
        edits = [mine[k] for k in ("substitutions", "insertions", "deletions")]
        assert sum(edits) == expected.substitutions + expected.insertions + expected.deletions
        assert mine["low"] <= mine["value"] <= mine["high"]
        assert mine["low_by_speaker"] <= mine["value"] <= mine["high_by_speaker"]
        assert mine["speakers"] == 3
    assert found["sentence_error_rate"] == 6 / 8
    assert (found["empty"], found["runaway"], found["recordings"], found["runs"]) == (1, 0, 8, 8)


def test_without_speakers_there_is_no_interval_by_speaker() -> None:
    rows = [row(n, "ctc", "x", speaker="" if n == 2 else "s") for n in range(4)]
    assert "low_by_speaker" not in score_of(build_report(rows, "basic", {}), "ctc", "en")["cer"]


@pytest.mark.parametrize(("length", "is_runaway"), [(28, False), (29, True)])
def test_a_runaway_is_more_than_twice_the_reference_and_twenty(length: int, is_runaway: bool) -> None:
    rows = [row(3, "ctc", "a" * length)]
    assert score_of(build_report(rows, "basic", {}), "ctc", "en")["runaway"] == is_runaway


def test_the_normaliser_is_used_and_named() -> None:
    rows = [row(n, "ctc", WORDS[n].upper() + "!") for n in range(8)] + both("seeded-8", "diffusion-8")
    clean, raw = (build_report(rows, name, {}) for name in ("basic", "none"))
    assert score_of(clean, "ctc", "en")["cer"]["value"] == 0
    assert score_of(raw, "ctc", "en")["cer"]["value"] > 0.9
    for report, name in ((clean, "basic"), (raw, "none")):
        assert report["normaliser"] == name
        page = render(report)
        tables = [line for line in page.splitlines() if line.startswith("## ") and "Speed" not in line]
        assert all(name in line for line in tables if "CTC-greedy" not in line)
        assert all(f"normaliser {name}" in c["sentence"] for c in report["comparisons"])


def test_languages_pool_and_their_mean_weighs_each_alike() -> None:
    rows = [row(0, "ctc", "alpha beta"), row(1, "ctc", "gamma delta")]
    rows += [row(9, "ctc", "漢", language="zh", reference="汉语")]
    report = build_report(rows, "basic", {})
    assert score_of(report, "ctc", "zh")["cer"]["value"] == 0.5
    assert score_of(report, "ctc", "zh")["wer"] is None, "no words to count"
    assert score_of(report, "ctc", "all")["cer"]["value"] == pytest.approx(1 / 23)
    assert report["means"] == [{"set": "dev", "system": "ctc", "wer": 0.0, "cer": 0.25}]


def test_seeds_are_pooled() -> None:
    rows = [row(0, "diffusion-8", "alpha beta"), row(0, "diffusion-8", "xlpha beta", seed=1)]
    report = build_report(rows, "basic", {})
    assert score_of(report, "diffusion-8", "en")["cer"]["value"] == 1 / 20
    assert report["systems"]["diffusion-8"]["seeds"] == 2


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [("seeded-8", "ctc", "beats CTC-greedy by 10"), ("ctc", "seeded-8", "is worse than CTC-greedy by 10")],
)
def test_the_sentence_says_who_wins_and_by_how_much(good: str, bad: str, words: str) -> None:
    rows = both(good, bad) + both(good, bad, language="de")
    for number, one in enumerate(rows):
        one["id"] = f"{one['language']}{number % len(WORDS)}"
    report = build_report(rows, "basic", {})
    by_language = {c["language"]: c for c in report["comparisons"]}
    assert list(by_language) == ["en", "de", "all"]
    size = sum(len(w) for w in WORDS)
    for code, name in (("en", "English"), ("de", "German"), ("all", "All languages together")):
        found = by_language[code]
        assert found["difference"]["value"] == pytest.approx((-8 if bad == "ctc" else 8) / size)
        assert found["sentence"].startswith(f"{name}, dev: seeded-8 {words[:-2]}")
        assert f"by {100 * 8 / size:.1f} points" in found["sentence"]
    assert by_language["en"]["sentence"] in render(report)


def test_seeds_do_not_shift_a_paired_difference() -> None:
    rows = both("ctc", "diffusion-8")
    more = rows + [row(n, "diffusion-8", WORDS[n][1:], seed=1) for n in range(len(WORDS))]
    (one,), (two,) = (build_report(r, "basic", {})["comparisons"] for r in (rows, more))
    assert one["difference"] == two["difference"]
    (short,) = build_report(more[:-1], "basic", {})["comparisons"]
    assert short["recordings"] == len(WORDS) - 1, "the recording that lacks a seed is left out"


def test_equal_systems_are_not_said_to_differ() -> None:
    rows = [row(n, s, WORDS[n]) for n in range(8) for s in ("ctc", "seeded-8")]
    (found,) = build_report(rows, "basic", {})["comparisons"]
    assert "does not clearly differ" in found["sentence"]


def test_one_recording_proves_nothing() -> None:
    (found,) = build_report([row(0, "ctc", WORDS[0]), row(0, "seeded-8", "x")], "basic", {})["comparisons"]
    assert "one recording is too few" in found["sentence"]


def test_headlines_are_chosen_by_number_not_by_result() -> None:
    usual = SamplingOptions().steps
    rows = [
        row(0, name, "x") for name in ("ctc", "seeded-1", f"seeded-{usual}", "seeded-48", "diffusion-2", "diffusion-4")
    ]
    systems = build_report(rows, "basic", {})["systems"]
    assert [n for n, s in systems.items() if s["is_headline"]] == ["ctc", "diffusion-4", f"seeded-{usual}"]


def test_speed_is_audio_over_processing() -> None:
    steps = {"seconds": {"encoder": 0.5, "denoise": 1.5}, "calls": {"denoise": 3.0}}
    report = build_report([row(n, "seeded-8", "x", **steps) for n in range(4)], "basic", {})
    found = report["systems"]["seeded-8"]
    assert found["rtfx"] == pytest.approx(1.0)
    assert found["stages"] == {"encoder": 2.0, "denoise": 6.0}
    assert (found["seconds_a_step"], found["steps_run"]) == (0.5, 3.0)


def test_the_language_found_is_counted() -> None:
    rows = [row(n, "ar", "x", found=found) for n, found in enumerate(["en", "en", "de", "hi"])]
    report = build_report([*rows, row(0, "ctc", "x")], "basic", {})
    (found,) = report["languages"]
    assert (found["system"], found["right"], found["all"], found["accuracy"]) == ("ar", 2, 4, 0.5)
    assert found["confusion"] == {"en": {"en": 2, "de": 1, "hi": 1}}
    assert "ar on dev: 2 of 4 rightly" in render(report)


def test_the_report_is_written_with_its_plots(tmp_path: Path) -> None:
    rows = [*both("seeded-8", "ctc"), row(8, "seeded-8", "x")]
    (tmp_path / "hypotheses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    session = {
        "cpu": "C",
        "cores": 2,
        "versions": {"torch": "2"},
        "commit": "abc",
        "date": "d",
        "peak_mib": {"diffasr": 7},
    }
    facts = {
        "identity": {"model": {"name": "tiny", "fingerprint": "f" * 64}, "find_language": False, "threads": 2,
                     "device": "cpu", "batch": 1},
        "sessions": [session, session],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    made = write_report(tmp_path, "basic", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")) == made
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "most errors: seeded-8" in (tmp_path / "out" / "worst.html").read_text(encoding="utf-8")
    assert page.endswith("(worst.html)\n")
    for name in ("error-by-steps.png", "error-by-speed.png", "error-by-language.png"):
        assert f"({name})" in page
        assert (tmp_path / "out" / name).is_file()
    for word in ("tiny", "commit abc", "2 threads", "diffasr 7", "2 sessions", "The language was given"):
        assert word in page
