"""The recipe for the reference's table runs on tiny sets of the hub's layout, and without a network it says so."""

import importlib.util
import json
import os
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from test_sets import FEATURES, Row, fleurs, librispeech, voxpopuli, write

from diffasr.evaluate.sets import CONFIGS
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model

RECIPE = Path(__file__).parents[1] / "recipes" / "eval-reference"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # no cache beside the recipe


@pytest.fixture
def recipe() -> ModuleType:
    loader = SourceFileLoader("eval_reference", str(RECIPE / "run"))
    spec = importlib.util.spec_from_loader("eval_reference", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def stand_ins(folder: Path) -> None:
    """One recording a set."""
    places: list[tuple[str, Row]] = [("librispeech/clean/test", librispeech), ("voxpopuli/en/test", voxpopuli)]
    places += [(f"fleurs/{config}/test", fleurs) for config in CONFIGS["fleurs"].values()]
    for place, row in places:
        write(folder / place / "0000.parquet", [row(0)], FEATURES[row])


def test_our_figures_stand_beside_the_published(
    recipe: ModuleType,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "tiny", model)
    stand_ins(tmp_path / "data")
    out = tmp_path / "out"
    words = f"run --model {tmp_path}/tiny --data {tmp_path}/data --out {out} --steps 1,8 --decoders ctc,diffusion"
    monkeypatch.setattr("sys.argv", [*words.split(), "--threads", "1", "--limit", "1"])
    assert recipe.main() == 0
    page = capsys.readouterr().out
    assert page == (out / "table.md").read_text(encoding="utf-8")
    head, *lines = [line for line in page.splitlines() if line.startswith("| ")][: len(recipe.ROWS) + 2]
    assert head == "| set | measure | published, 16 steps | ctc | diffusion-1 | diffusion-8 |"
    assert "| fleurs:en:test, published by steps | WER |  | – | – | 15.7 |" in lines
    for name, normaliser in ((out, "whisper"), (out / "basic", "basic")):
        report = json.loads((name / "results.json").read_text(encoding="utf-8"))
        assert report["normaliser"] == normaliser
        assert f"(normaliser: {normaliser}," in page
        for data, language, measure, published, _ in recipe.ROWS:
            cells = [
                recipe.cell(score, measure) for score in report["scores"]
                if (score["set"], score["language"]) == (data, language)
            ]  # fmt: skip
            assert len(cells) == 3 and "–" not in cells
            said = "–" if published is None else f"{published}"
            assert f"| {data} | {measure.upper()} | {said} | {' | '.join(cells)} |" in page


def test_without_a_network_it_says_what_to_do(
    recipe: ModuleType,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "tiny", model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.argv", ["run", "--model", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")])
    assert recipe.main() == 1
    told = capsys.readouterr()
    assert not told.out
    assert "openslr/librispeech_asr" in told.err and "Is there a network?" in told.err


def test_the_readme_has_the_figures_of_the_recipe(recipe: ModuleType) -> None:
    text = (RECIPE / "README.md").read_text(encoding="utf-8")
    published = [str(row[3]) for row in recipe.ROWS if row[3] is not None]
    assert re.findall(r"^\| [LFV].* \| [WC]ER \| ([\d.]+) \|$", text, re.MULTILINE) == published
    sweep = recipe.ROWS[1][4]
    assert f"by steps {', '.join(map(str, sweep))}: {', '.join(map(str, sweep.values()))} " in text
    assert tuple(sweep) == recipe.STEPS
    assert os.access(RECIPE / "run", os.X_OK)
