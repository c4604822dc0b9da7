"""Rendering keeps every letter; writing is all or nothing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.errors import OptionError
from diffasr.formats import render, write_text_atomically
from diffasr.transcript import Segment, Transcript


def make_transcript(text: str) -> Transcript:
    segment = Segment(start=0.0, end=2.0, text=text, language="fr", avg_logprob=-0.1, steps=8)
    return Transcript(
        text=text, language="fr", language_probability=0.9, duration=2.0, segments=(segment,), model="mini"
    )


@given(st.text(st.characters(codec="utf-8")))
def test_json_is_a_round_trip(text: str) -> None:
    transcript = make_transcript(text)
    rendered = render(transcript, "json")
    assert json.loads(rendered) == transcript.to_dict()
    assert rendered.endswith("}\n")


def test_letters_stay_readable() -> None:
    assert "déjà vu, 你好" in render(make_transcript("déjà vu, 你好"), "json")


@pytest.mark.parametrize("text", ["", "bonjour", "bonjour\n", "deux\nlignes"])
def test_txt_is_the_text_and_one_newline(text: str) -> None:
    assert render(make_transcript(text), "txt") == text.removesuffix("\n") + "\n"


def test_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="txt or json, got 'doc'"):
        render(make_transcript("bonjour"), "doc")  # type: ignore[arg-type]


@given(st.text(st.characters(codec="utf-8")))
def test_file_holds_exactly_the_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("formats") / "out.txt"
    write_text_atomically(path, "old text")
    write_text_atomically(path, text)
    assert path.read_bytes() == text.encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["out.txt"], "no draft may stay behind"


def test_failure_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old text")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OptionError, match="No space left on device"):
        write_text_atomically(path, "new text")
    assert path.read_text() == "old text"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/out.txt", "."])
def test_bad_place_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"cannot write .*has room"):
        write_text_atomically(tmp_path / name, "text")
    assert list(tmp_path.iterdir()) == []


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "out.txt", tmp_path / "link.txt"
    path.write_text("old text")
    path.chmod(0o640)
    link.symlink_to(path)
    write_text_atomically(link, "new text")
    assert link.is_symlink()
    assert path.read_text() == "new text"
    assert path.stat().st_mode & 0o777 == 0o640
