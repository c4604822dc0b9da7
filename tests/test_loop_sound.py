"""Training on sound: a run from manifests is stopped and resumed like any other, and only what is named learns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MELS, TIMES, random_model, write_store
from test_recordings import SAYS, write_manifest
from torch import Tensor

from diffasr.errors import ModelError, RecipeError
from diffasr.model import checkpoint
from diffasr.text import Tokenizer
from diffasr.train import loop
from diffasr.train.augment import Augment
from diffasr.train.loop import last_layers, part_of, train
from diffasr.train.stages import Recipe, Stage

JOINT = {
    "name": "joint", "rates": {"encoder": 1e-3, "projector": 1e-3, "conditioning": 1e-3, "decoder": 1e-3},
    "encoder_layers": 1, "ctc": 0.5, "ar": 1.0, "distil": 0.3, "ar_draft": 0.5, "drift": 0.5, "diffusion_share": 0.5,
}  # fmt: skip
EARS = Augment(speed=0.1, gain_db=6, room=0.3, noise=0.5, codec=0.2, joined=0.5)


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    return


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder / "init", random_model())
    checkpoint.save(folder / "teacher", random_model(4))
    return {"init": folder / "init", "teacher": folder / "teacher", "sound": write_manifest(folder / "sound", SAYS)}


def recipe(places: dict[str, Path], steps: int, *, augment: Augment = EARS, **changes: Any) -> Recipe:
    stage = Stage(**(JOINT | {"steps": steps, "seconds": 3.0, "warmup": 1, "ema": 0.5} | changes))
    return Recipe(
        name="r", init=places["init"], teacher=places["teacher"], manifests=(places["sound"],), dev=places["sound"],
        stages=(stage,), augment=augment, evaluate_every=10**6, evaluate_count=2, save_every=10**6, seed=5,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder).network.state_dict()


def log_of(out: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_run_on_sound_that_was_stopped_equals_one_that_was_not(places: dict[str, Path], tmp_path: Path) -> None:
    plan = recipe(places, 12)
    torch.manual_seed(1)
    whole = train(plan, tmp_path / "whole")
    for number, steps in enumerate((2, 8)):
        torch.manual_seed(100 + number)
        train(plan, tmp_path / "parts", stop_after=steps)
        assert not (tmp_path / "parts" / "model").exists()
    assert not changed(weights(whole), weights(train(plan, tmp_path / "parts")))
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    last = log_of(tmp_path / "whole")[-1]
    assert last["step"] == 12
    assert {"ctc", "ar", "distil", "diffusion", "cer_ctc", "cer_diffusion"} <= last.keys()
    assert last["epoch"] > 0, "the second epoch's sounds are resumed too"


@pytest.mark.parametrize("layers", [1, 2])
def test_of_the_encoder_only_the_last_layers_learn(places: dict[str, Path], tmp_path: Path, layers: int) -> None:
    plan = recipe(places, 2, encoder_layers=layers)
    moved = changed(weights(places["init"]), weights(train(plan, tmp_path)))
    ears = {name for name in moved if part_of(name) == "encoder"}
    kept = [f"encoder.layers.{n}." for n in range(2 - layers)] + ["encoder.conv"]
    assert ears and not [name for name in ears if name.startswith(tuple(kept))]
    for n in range(2 - layers, 2):
        assert any(name.startswith(f"encoder.layers.{n}.") for name in ears)
    assert any(name.startswith("encoder.layer_norm.") for name in ears)
    assert {part_of(name) for name in moved} == {"encoder", "projector", "conditioning", "decoder"}
    network = random_model().network
    assert len(last_layers(network, layers)) == layers * len(list(network.encoder.layers[0].parameters())) + 2


def test_the_teacher_is_read_from_its_folder_and_never_written(places: dict[str, Path], tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in sorted(places["teacher"].iterdir())}
    taught = weights(train(recipe(places, 2), tmp_path / "a"))
    assert {file: file.read_bytes() for file in sorted(places["teacher"].iterdir())} == before
    other = recipe(places | {"teacher": places["init"]}, 2)
    assert changed(taught, weights(train(other, tmp_path / "b"))), "another teacher teaches something else"
    first = log_of(tmp_path / "b")[0]
    assert first["distil"] < log_of(tmp_path / "a")[0]["distil"], "who starts as its teacher is near to it"


def test_no_teacher_where_one_is_needed(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="distil: name a teacher"):
        Recipe(**(vars(recipe(places, 1)) | {"teacher": None}))
    with pytest.raises(ModelError):
        train(recipe(places | {"teacher": tmp_path / "nowhere"}, 1), tmp_path / "out")


def test_augmentation_and_joining_reach_the_batches(places: dict[str, Path], tmp_path: Path) -> None:
    plain, ears, longer = (
        log_of(train(recipe(places, 3, augment=augment), tmp_path / str(n)).parent)
        for n, augment in enumerate((Augment(), Augment(noise=1.0), Augment(joined=1.0)))
    )
    assert plain[0]["ctc"] != ears[0]["ctc"] and plain[0]["rows"] == ears[0]["rows"]
    model = random_model()
    counts = [len(loop._items(recipe(places, 1, augment=a), model)) for a in (Augment(), Augment(joined=1.0))]
    assert counts == [7, 14]
    assert [e["rows"] for e in longer] != [e["rows"] for e in plain]


def test_features_can_not_teach_the_encoder(places: dict[str, Path], tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = write_store(tmp_path / "store", [("the cat", "en")], tokenizer)
    fields = vars(recipe(places, 1)) | {"manifests": (), "features": (store.folder,)}
    with pytest.raises(RecipeError, match="trains the encoder: name manifests"):
        Recipe(**fields)


def test_the_ear_hears_as_many_bands_as_it_was_made_for(places: dict[str, Path]) -> None:
    model = random_model()
    (first, *_) = loop._items(recipe(places, 1, augment=Augment()), model)
    assert not hasattr(first.store, "folder"), "sound, not features"
    assert first.store.mels == model.config.encoder.mels == MELS  # type: ignore[union-attr]
