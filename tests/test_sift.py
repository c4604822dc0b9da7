"""Sifting synthetic speech: what a recogniser can't read goes, nothing else does, and nothing is heard twice."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from diffasr.audio import Samples

SIFT = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "mini" / "sift.py"))
SAYS = [
    ("the cat sat here", "en", "The cat sat here."),
    ("die katze ist da", "de", "die katze war da"),  # 3 of 16
    ("le chat est ici", "fr", ""),
    ("el gato", "es", "el gato el gato el gato el gato el gato"),
    ("बिल्ली यहाँ है", "hi", "nobody should ask"),
    ("a dog", "en", "a frog and a log"),
]


class Fake:
    """Knows a clip by its length, and counts how often it was asked."""

    name = "fake"
    versions: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, fails_after: int = 99) -> None:
        self.asked: list[tuple[int, str | None]] = []
        self.fails_after = fails_after

    def transcribe(self, samples: Samples, language: str | None) -> tuple[str, str]:
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        number = round(len(samples) / 1600) - 1
        self.asked.append((number, language))
        return SAYS[number][2], str(language)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for number, (text, language, _) in enumerate(SAYS):
        name, seconds = f"1_{number:06d}.wav", (number + 1) / 10
        soundfile.write(tmp_path / name, np.zeros(round(seconds * 16_000)), 16_000)
        row = {"audio_filepath": name, "duration": seconds, "text": text, "lang": language, "license": "x"}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (tmp_path / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "manifest.jsonl"


def kept(manifest: Path) -> list[int]:
    """Numbers of the clips that stayed, whose lines are those of the manifest."""
    lines = (manifest.parent / "sifted.jsonl").read_text(encoding="utf-8").splitlines()
    all_lines = manifest.read_text(encoding="utf-8").splitlines()
    return [all_lines.index(line) for line in lines]


def sift(manifest: Path, fake: Fake, **options: Any) -> str:
    return str(SIFT["sift"](manifest, fake, **({"bound": 0.4} | options)))


def test_what_is_read_wrongly_goes_and_hindi_stays(manifest: Path) -> None:
    fake = Fake()
    said = sift(manifest, fake)
    assert fake.asked == [(n, SAYS[n][1]) for n in (0, 1, 2, 3, 5)], "Hindi is not asked for; the language is told"
    assert kept(manifest) == [0, 1, 4]
    assert "6 clips" in said and "dropped 3 (50.0 %)" in said
    assert "nothing heard 1, text that runs on 1, other words 1" in said
    assert "'a dog' heard as 'a frog and a log'" in said
    assert said.index("el gato") < said.index("le chat"), "the worst first"
    assert "unheard, in hi, all kept: 1" in said


@pytest.mark.parametrize(("bound", "stay"), [(0.0, [0, 4]), (0.2, [0, 1, 4]), (1.0, [0, 1, 2, 4]),
                                             (99.0, [0, 1, 2, 3, 4, 5])])  # fmt: skip
def test_the_bound_decides_and_needs_no_new_hearing(manifest: Path, bound: float, stay: list[int]) -> None:
    sift(manifest, Fake())
    again = Fake()
    sift(manifest, again, bound=bound)
    assert again.asked == []
    assert kept(manifest) == stay


def test_an_interrupted_run_goes_on(manifest: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sift(manifest, Fake(fails_after=2))
    heard = manifest.parent / "heard.jsonl"
    assert len(heard.read_text().splitlines()) == 2
    assert not (manifest.parent / "sifted.jsonl").exists()
    heard.write_bytes(heard.read_bytes() + b'{"audio_filepath": "1_0000')  # cut short
    again = Fake()
    sift(manifest, again)
    assert [number for number, _ in again.asked] == [2, 3, 5]
    assert kept(manifest) == [0, 1, 4]
    assert len(SIFT["read_rows"](heard)) == 5


def test_a_sample_writes_no_manifest(manifest: Path) -> None:
    fake = Fake()
    said = sift(manifest, fake, sample=2)
    assert [number for number, _ in fake.asked] == [0, 3]
    assert said.startswith("2 clips")
    assert not (manifest.parent / "sifted.jsonl").exists()


def test_an_empty_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no line"):
        sift(tmp_path / "manifest.jsonl", Fake())
