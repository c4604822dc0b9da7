"""Batches made by other processes are the same, in the same order, and a run with them is the same run."""

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TIMES, random_model
from test_loop_sound import EARS, recipe, weights
from test_recordings import SAYS, write_manifest

from diffasr.errors import AudioError, RecipeError
from diffasr.model import checkpoint
from diffasr.text import Tokenizer
from diffasr.train import loop
from diffasr.train.ahead import Dealt, made
from diffasr.train.data import Item, Mel, read_items
from diffasr.train.loop import train
from diffasr.train.recordings import Recordings


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder / "init", random_model())
    return {"init": folder / "init", "teacher": folder / "init", "sound": write_manifest(folder / "sound", SAYS)}


@pytest.fixture
def items(places: dict[str, Path], tokenizer: Tokenizer) -> list[Item]:
    return read_items([Recordings(places["sound"], EARS, mels=8)], tokenizer, max_tokens=99)


def plan(count: int) -> Iterator[Dealt]:
    for number in range(count):
        yield Dealt(epoch=3, number=number + 1, rows=(number % 2, 2), is_mine=number != 1)


def test_many_hands_make_what_one_makes_in_the_same_order(
    places: dict[str, Path], items: list[Item], tokenizer: Tokenizer
) -> None:
    base = recipe(places, 1)
    alone, helped = (
        list(made(plan(5), items, end=tokenizer.end, recipe=dataclasses.replace(base, workers=workers)))
        for workers in (0, 2)
    )
    assert [dealt for dealt, _ in helped] == [dealt for dealt, _ in alone] == list(plan(5))
    for (_, one), (_, other) in zip(alone, helped, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert isinstance(one.speech, Mel) and isinstance(other.speech, Mel)
            assert torch.equal(one.speech.features, other.speech.features)
            assert torch.equal(one.tokens, other.tokens)
    assert [batch is None for _, batch in alone] == [False, True, False, False, False]


def test_a_run_with_workers_is_the_run_without(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    alone = recipe(places, 5)
    helped = dataclasses.replace(alone, workers=2)
    train(alone, tmp_path / "alone")
    train(helped, tmp_path / "helped", stop_after=2)  # what was made ahead and not used is made again
    train(helped, tmp_path / "helped")
    one, other = weights(tmp_path / "alone" / "model"), weights(tmp_path / "helped" / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [(tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines() for name in ("alone", "helped")]
    kept = [[{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in log] for log in logs]
    assert kept[0] == kept[1]


def test_sound_that_is_gone_stops_the_run_with_its_name(places: dict[str, Path], items: list[Item]) -> None:
    gone = dataclasses.replace(items[0].store.utterances[0], audio="/nowhere/gone.wav")
    items[0].store.utterances[0] = gone
    with pytest.raises(AudioError, match=r"^/nowhere/gone\.wav"):
        list(
            made(
                iter([Dealt(0, 1, (0,), True)]), items, end=0, recipe=dataclasses.replace(recipe(places, 1), workers=1)
            )
        )


def test_a_worker_that_is_told_to_stop_works_until_all_is_saved(places: dict[str, Path], items: list[Item]) -> None:
    """A job's end is told to every process of it; the one that trains has a step to finish and its state to write."""
    others = set(multiprocessing.active_children())
    batches = made(plan(40), items, end=0, recipe=dataclasses.replace(recipe(places, 1), workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert len([next(batches) for _ in range(20)]) == 20


def test_workers_are_counted_from_none(places: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="workers 0"):
        dataclasses.replace(recipe(places, 1), workers=-1)
