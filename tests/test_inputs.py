"""Files, folders, patterns and standard input: what is found, and where its outputs go."""

from pathlib import Path
from typing import Any

import pytest

from diffasr.batch.inputs import check_places, find_recordings
from diffasr.errors import OptionError

TREE = ("a/x.wav", "a/b/x.wav", "a/b/film.MKV", "y.mp3", ".hidden.wav", ".cache/z.wav", "notes.txt", "odd.dat")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


def places(*words: Any) -> list[str]:
    return [r.place.as_posix() for r in find_recordings([str(word) for word in words])]


def test_a_folder_is_mirrored(tree: Path) -> None:
    assert places(tree) == ["a/b/film.MKV", "a/b/x.wav", "a/x.wav", "y.mp3"]
    for recording in find_recordings([str(tree)]):
        assert (tree / recording.place).samefile(recording.source)
        assert recording.size == len(recording.place.as_posix())


def test_a_pattern_counts_from_its_first_wildcard(tree: Path) -> None:
    assert places(tree / "**") == places(tree)
    assert places(tree / "a" / "**" / "*.wav") == ["b/x.wav", "x.wav"]
    assert places(tree / "*" / "x.wav") == ["a/x.wav"]
    assert places(tree / "*.dat") == ["odd.dat"], "an ending that is said needs not be known"
    assert places(tree / "*.*") == ["y.mp3"]
    (tree / "talk[1].ogg").touch()
    assert places(tree / "talk[1].ogg") == ["talk[1].ogg"], "a name is not a pattern where it exists"


def test_a_name_may_begin_like_a_home(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    (tree / "~$talk.mp3").touch()
    assert places("~$talk.mp3") == ["~$talk.mp3"]


def test_what_is_found_twice_counts_once(tree: Path) -> None:
    assert places(tree / "a" / "x.wav", tree, "-", "-") == ["x.wav", "a/b/film.MKV", "a/b/x.wav", "y.mp3", "stdin"]


@pytest.mark.parametrize("word", ["empty", "in/*.flac", "in/none/**"])
def test_nothing_found_is_an_error_of_the_call(tree: Path, word: str) -> None:
    (tree.parent / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no recording"):
        find_recordings([str(tree.parent / word)])
    with pytest.raises(OptionError, match="empty name"):
        find_recordings([""])


def test_two_recordings_of_one_place_are_named(tree: Path) -> None:
    one, two = tree / "a" / "x.wav", tree / "a" / "b" / "x.wav"
    with pytest.raises(OptionError, match=r"would both be written to x\.wav") as caught:
        check_places(find_recordings([str(one), str(two)]))
    assert str(one) in str(caught.value) and str(two) in str(caught.value)
    check_places(find_recordings([str(tree / "a")]))
