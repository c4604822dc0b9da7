"""The command line as its users meet it: words in, text and exit codes out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffasr import cli
from diffasr.audio import SAMPLE_RATE_HZ
from diffasr.model.checkpoint import Model, save


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    save(place, model)
    return place


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", 0.1 * noise, SAMPLE_RATE_HZ)
    return tmp_path / "clip.wav"


def test_text_goes_to_stdout(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(clip), "--model", str(folder)]) == 0
    out = capsys.readouterr()
    assert out.out.endswith("\n")
    assert out.err == ""


def test_json_says_what_was_asked(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["transcribe", str(clip), "--model", str(folder), "--format", "json", "--language", "fr", "--steps", "3"]
    assert cli.main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["language"] == "fr"
    assert said["language_probability"] is None
    assert said["duration"] == 1.0
    assert all(segment["steps"] <= 3 for segment in said["segments"])


def test_files_are_written_where_asked(folder: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert cli.main(["transcribe", str(clip), "--model", str(folder), "--output-dir", str(out)]) == 0
    assert [p.name for p in out.iterdir()] == ["clip.wav.txt"]


def test_a_place_that_cannot_be_made_is_named(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transcribe", str(clip), "--output-dir", str(clip / "out")]) == 2
    assert str(clip / "out") in capsys.readouterr().err


def test_two_files_of_one_name_are_refused_before_any_work(folder: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    twin = shutil.copy(clip, tmp_path / "b" / "clip.wav")
    out = tmp_path / "out"
    call = ["transcribe", str(clip), str(twin), "--model", str(folder), "--output-dir", str(out)]
    assert cli.main(call) == 2
    assert not out.exists()


def test_one_bad_file_does_not_stop_the_others(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    call = ["transcribe", str(tmp_path / "bad.wav"), str(tmp_path / "none.wav"), str(clip), "--model", str(folder)]
    assert cli.main(call) == 1
    out = capsys.readouterr()
    assert "bad.wav" in out.err
    assert "none.wav" in out.err
    assert "2 of 3 files failed" in out.err
    assert str(clip) in out.out


def test_watching_shows_every_step(folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["transcribe", str(clip), "--model", str(folder), "--watch", "--steps", "2", "--start", "noise"]
    assert cli.main(call) == 0
    assert "step 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "code", "word"),
    [
        (["transcribe", "x.wav", "--model", "nowhere"], 1, "nowhere"),
        (["transcribe", "x.wav", "--steps", "0"], 2, "steps"),
        (["train", "no-such-recipe"], 2, "no-such-recipe"),
        (["score", "no-such-manifest.jsonl", "--model", "nowhere"], 1, "nowhere"),
        (["info", "nowhere"], 1, "nowhere"),
    ],
)
def test_errors_name_the_value_and_set_the_code(
    call: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call) == code
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("call", [[], ["transcribe"], ["transcribe", "x", "--language", "xx"], ["sing"]])
def test_a_wrong_call_leaves_with_two(call: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(call)
    assert left.value.code == 2


def test_info_counts_what_is_inside(folder: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(folder)]) == 0
    total = sum(p.numel() for p in model.network.parameters())
    assert f"{total:,}" in capsys.readouterr().out


def test_info_of_the_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "26b"]) == 0
    out = capsys.readouterr().out
    assert "188" in out
    assert "2816" in out
    assert "22,978,560" in out


def test_score_prints_a_row_a_system_and_keeps_the_hypotheses(
    folder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"audio_filepath": "clip.wav", "duration": 1.0, "text": text, "lang": code}
        for text, code in (("abc", "en"), ("def", "de"))
    ]
    manifest = tmp_path / "two.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "raw.jsonl"
    call = ["score", str(manifest), "--model", str(folder), "--steps", "1", "2", "--start", "ctc", "noise"]
    assert cli.main([*call, "--find-language", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0] == "| decoder | en | de | mean |"
    for name in ("ctc", "autoregressive", "diffusion, from ctc, 2 steps", "diffusion, from noise, 1 steps"):
        assert f"| {name} |" in table
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 * 6
    assert {row["reference"] for row in rows} == {"abc", "def"}
