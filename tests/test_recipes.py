"""The recipes beside the mini are read, their scripts run, and what they prepare is what they train on."""

import gzip
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from diffasr.audio import load_audio
from diffasr.train.stages import Recipe
from diffasr.train.tar import read_shards, sound

RECIPES = Path(__file__).parent.parent / "recipes"


def script(name: str) -> dict[str, Any]:
    """The names of a recipe's script."""
    return runpy.run_path(str(RECIPES / "gemma-26b" / f"{name}.py"))


@pytest.mark.parametrize(("name", "init"), [("gemma-26b", "google/diffusiongemma-26B-A4B-it"),
                                            ("whisper", "openai/whisper-small")])  # fmt: skip
def test_recipes_are_whole_and_start_from_the_hub(name: str, init: str) -> None:
    recipe = Recipe.load(RECIPES / name)
    assert (recipe.name, recipe.init) == (name, init)
    assert recipe.stages[0].ctc > 0 and recipe.stages[-1].diffusion > 0
    assert recipe.manifests and recipe.recompute


def test_ten_epochs_are_what_the_recipe_says_and_what_the_cost_counts(capsys: pytest.CaptureFixture[str]) -> None:
    last = Recipe.load(RECIPES / "gemma-26b").stages[-1]
    assert last.steps * last.batches * last.seconds / 30 == pytest.approx(10 * 714_000, rel=0.01)
    cost = script("cost")
    plain, again = (cost["operations"](recompute=recompute) for recompute in (False, True))
    assert 1.1 * plain < again < 1.4 * plain
    cost["main"](["--utterances", "1000", "--epochs", "1"])
    small = capsys.readouterr().out
    cost["main"](["--utterances", "100000", "--epochs", "10"])
    large = capsys.readouterr().out
    assert "counted and not measured" in small
    hours = [[float(c.replace(",", "")) for c in line.split("|")[2:5]] for line in large.splitlines() if "H100" in line]
    expected = plain * 1e6 / (989e12 * 0.1) / 3600
    assert hours[0][0] == pytest.approx(expected, abs=0.6) and hours[1][0] > hours[0][0]


def write_librispeech(folder: Path) -> None:
    """Two utterances as the tars of LibriSpeech unpack."""
    for part in ("train-clean-100", "train-clean-360", "train-other-500"):
        place = folder / part / "19" / "198"
        place.mkdir(parents=True)
        lines = []
        for number in range(2):
            name = f"19-198-000{number}"
            samples = np.random.default_rng(number).normal(0, 0.1, 8000 * (number + 1))
            soundfile.write(place / f"{name}.flac", samples, 16_000)
            lines.append(f"{name} THE CAT {number}\n")
        (place / "19-198.trans.txt").write_text("".join(lines))
    (folder / "SPEAKERS.TXT").write_text("19 | F | train-clean-100 | 1 | x\n")


@pytest.mark.filterwarnings("ignore")
def test_librispeech_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lhotse")
    corpus = tmp_path / "LibriSpeech"
    write_librispeech(corpus)
    script("prepare")["main"](["librispeech", str(corpus), "memory://prepared/train-*.tar"])
    read = read_shards("memory://prepared/train-*.tar")
    assert [(u.text, u.language, u.duration, u.speaker) for u in read[:2]] == [
        ("the cat 0", "en", 0.5, "19"), ("the cat 1", "en", 1.0, "19"),
    ]  # fmt: skip
    assert len(read) == 6
    np.testing.assert_allclose(
        load_audio(sound(read[1].audio)),
        load_audio(corpus / "train-clean-100" / "19" / "198" / "19-198-0001.flac"), atol=1e-4,
    )  # fmt: skip
    assert "librispeech en: 6 utterances" in capsys.readouterr().out


def test_segments_of_voxpopuli_are_cut_from_their_sessions(tmp_path: Path) -> None:
    prepare = script("prepare")
    with pytest.raises(SystemExit, match="lhotse download voxpopuli --subset asr"):
        prepare["main"](["voxpopuli", str(tmp_path), "memory://parliament/a-*.tar"])
    place = tmp_path / "raw_audios" / "original" / "2013"
    place.mkdir(parents=True)
    ramp = np.linspace(-0.5, 0.5, 5 * 16_000)
    soundfile.write(place / "20131007-0900-PLENARY-19_original.ogg", ramp, 16_000)
    columns = ["session_id", "start_time", "end_time", "split", "speaker_id", "gender", "normed_text", "original_text"]
    for language in ("en", "de", "fr", "es"):
        rows = [
            ["20131007-0900-PLENARY-19", "1.0", "2.5", "train", "7", "male", f"Hello {language}", "Hello."],
            ["20131007-0900-PLENARY-19", "3.0", "4.0", "dev", "7", "male", "other split", "x"],
            ["20131007-0900-PLENARY-19", "3.0", "4.0", "train", "7", "male", "", "no text"],
            ["20131007-0900-PLENARY-19", "0.0", "40.0", "train", "7", "male", "too long", "x"],
            ["20990101-0900-PLENARY-1", "3.0", "4.0", "train", "7", "male", "no session", "x"],
        ]
        text = "".join("|".join(row) + "\n" for row in [columns, *rows])
        (tmp_path / f"asr_{language}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    prepare["main"](["voxpopuli", str(tmp_path), "memory://parliament/a-*.tar"])
    read = read_shards("memory://parliament/a-*.tar")
    assert [(u.text, u.language, u.duration, u.speaker) for u in read] == [
        (f"hello {language}", language, 1.5, "7") for language in ("en", "de", "fr", "es")
    ]
    heard = load_audio(sound(read[0].audio))
    assert len(heard) == 24_000
    np.testing.assert_allclose(heard[4000:20_000], ramp[20_000:36_000], atol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_fleurs_comes_as_the_evaluation_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffasr.evaluate.sets import Clip, EvaluationSet

    file = tmp_path / "a.flac"
    soundfile.write(file, np.zeros(1600), 16_000)
    asked: list[str] = []

    def read_set(spec: str) -> EvaluationSet:
        asked.append(spec)
        language = spec.split(":")[2]
        clip = Clip(id="a", audio=file.read_bytes(), duration=0.1, text="Wort", language=language, speaker="")
        return EvaluationSet(name=spec, clips=(clip,))

    names = script("prepare")
    monkeypatch.setitem(names["fleurs"].__globals__, "read_set", read_set)
    names["main"](["any", "hf:owner/name:de:train", "memory://any/a-*.tar"])
    assert asked == ["hf:owner/name:de:train"]
    assert [(u.text, u.language) for u in read_shards("memory://any/a-*.tar")] == [("wort", "de")]
    asked.clear()
    rows = list(names["fleurs"]("hub", "validation"))
    assert asked == [f"hf:fleurs:{code}:validation" for code in ("en", "de", "fr", "es", "hi", "zh")]
    assert [(u.language, u.text, held) for u, held in rows][1] == ("de", "wort", file.read_bytes())
