"""How a command ends: the exit code, and one line of what went wrong."""

import errno
import io
import runpy
import sys
from pathlib import Path

import pytest

from diffasr import cli

MINI = Path(__file__).parent.parent / "recipes" / "mini"


def test_the_module_leaves_with_the_code_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["diffasr", "train", "no-such-recipe"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("diffasr", run_name="__main__")
    assert left.value.code == 2
    assert "no-such-recipe" in capsys.readouterr().err


def test_a_run_that_was_stopped_names_no_model_and_leaves_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffasr.train.loop.train", lambda recipe, out, overfit: out / "model")
    call = ["train", str(MINI), "--out", str(tmp_path)]
    assert (cli.main(call), capsys.readouterr().out) == (130, "")
    (tmp_path / "model").mkdir()
    assert (cli.main(call), capsys.readouterr().out) == (0, f"{tmp_path / 'model'}\n")
    assert cli.main([*call, "--threads", "-1"]) == 2
    assert "--threads must be at least 1, got -1" in capsys.readouterr().err


def test_a_place_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert cli.main(["train", str(MINI), "--out", str(tmp_path / "taken")]) == 1
    assert capsys.readouterr().err == f"diffasr: {tmp_path / 'taken'}: File exists\n"


def test_a_name_that_the_terminal_cannot_spell_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8", errors="strict"))
    monkeypatch.setattr(cli, "run", lambda _args: print("caf\udce9.wav", flush=True) or 0)
    assert cli.main(["doctor"]) == 0
    assert raw.getvalue() == b"caf\\udce9.wav\n"


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "run", full)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "diffasr: the output can't be written: No space left on device; make room and call again\n"
    )
