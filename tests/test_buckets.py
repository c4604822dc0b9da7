"""Laws of bucketing: nothing is lost, nothing comes twice, lengths are alike in a batch, and stopping is free."""

import json
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import TIMES, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from diffasr.errors import OptionError, RecipeError
from diffasr.model import checkpoint
from diffasr.train import loop
from diffasr.train.buckets import Buckets, BucketSampler, edges
from diffasr.train.data import FeatureStore
from diffasr.train.stages import Recipe, Stage

DICE = random.Random(0)
LENGTHS = [DICE.lognormvariate(1.5, 0.6) for _ in range(500)]


@settings(max_examples=20)
@given(
    durations=st.lists(st.floats(0.01, 40), min_size=1, max_size=30),
    seconds=st.floats(1, 100), count=st.integers(1, 8), together=st.integers(1, 4),
)  # fmt: skip
def test_each_utterance_once_an_epoch(durations: list[float], seconds: float, count: int, together: int) -> None:
    sampler = BucketSampler(durations, Buckets(seconds=seconds, count=count, together=together))
    for epoch in range(2):
        dealt = sampler.dealt(epoch)
        assert sorted(n for batch in dealt for n in batch) == list(range(len(durations)))
        for batch in dealt:
            assert len(batch) == 1 or len(batch) * max(durations[n] for n in batch) <= seconds


def test_resumed_anywhere_it_gives_the_same_batches() -> None:
    plan = Buckets(seconds=40, count=4, together=2, seed=3)
    size = len(BucketSampler(LENGTHS, plan).dealt(0))
    whole = list(islice(BucketSampler(LENGTHS, plan), 2 * size + 10))
    for stop in (0, 1, 7, size - 1, size, size + 1, 2 * size):
        first, second = BucketSampler(LENGTHS, plan), BucketSampler(LENGTHS, plan)
        head = list(islice(first, stop))
        second.load_state_dict(first.state_dict())
        assert head + list(islice(second, len(whole) - stop)) == whole, stop


def test_epochs_and_seeds_differ_and_repeat() -> None:
    plan = Buckets(seconds=40)
    sampler = BucketSampler(LENGTHS, plan)
    assert sampler.dealt(0) == BucketSampler(LENGTHS, plan).dealt(0)
    assert sampler.dealt(0) != sampler.dealt(1)
    assert sampler.dealt(0) != BucketSampler(LENGTHS, Buckets(seconds=40, seed=1)).dealt(0)


def padding(plan: Buckets) -> float:
    """Share of a padded epoch that is no audio."""
    dealt = BucketSampler(LENGTHS, plan).dealt(0)
    return 1 - sum(LENGTHS) / sum(len(b) * max(LENGTHS[n] for n in b) for b in dealt)


def test_more_buckets_waste_less() -> None:
    shares = [padding(Buckets(seconds=60, count=count)) for count in (1, 3, 12)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < shares[0] / 3


def test_buckets_hold_the_same_audio_and_are_in_order() -> None:
    held = edges(LENGTHS, 5)
    totals = [sum(LENGTHS[n] for n in bucket) for bucket in held]
    assert max(totals) - min(totals) < 2 * max(LENGTHS)
    for shorter, longer in pairwise(held):
        assert max(LENGTHS[n] for n in shorter) <= min(LENGTHS[n] for n in longer)


def test_the_batches_of_a_step_are_of_one_bucket() -> None:
    held = edges(LENGTHS, 5)
    bucket_of = {n: number for number, bucket in enumerate(held) for n in bucket}
    for together, least in ((1, 0.0), (4, 0.85)):
        dealt = BucketSampler(LENGTHS, Buckets(seconds=30, count=5, together=together)).dealt(0)
        steps = [dealt[n : n + 4] for n in range(0, len(dealt) - 3, 4)]
        alike = sum(len({bucket_of[b[0]] for b in step}) == 1 for step in steps) / len(steps)
        assert alike >= least
        assert together == 4 or alike < 0.5, "by chance it is rare"


@pytest.mark.parametrize("change", [{"seconds": 41}, {"count": 3}, {"together": 2}, {"seed": 1}])
def test_a_changed_plan_can_not_go_on(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"seconds": 40, "count": 4}
    state = BucketSampler(LENGTHS, Buckets(**base)).state_dict()
    with pytest.raises(RecipeError, match=f"{next(iter(change))} was"):
        BucketSampler(LENGTHS, Buckets(**base | change)).load_state_dict(state)
    with pytest.raises(RecipeError, match="utterances was 500, is 499"):
        BucketSampler(LENGTHS[1:], Buckets(**base)).load_state_dict(state)


@pytest.mark.parametrize("change", [{"seconds": 0}, {"count": 0}, {"together": 0}])
def test_bad_options_fail_at_once(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Buckets(**{"seconds": 1.0} | change)


@pytest.mark.parametrize("durations", [[], [1.0, 0.0]])
def test_utterances_need_a_length(durations: list[float]) -> None:
    with pytest.raises(OptionError, match=f"{len(durations)} were given"):
        BucketSampler(durations, Buckets(seconds=1))


def test_the_loop_deals_buckets_and_goes_on_in_the_middle_of_an_epoch(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    monkeypatch.setattr(loop, "_look", lambda *_: {})
    checkpoint.save(tmp_path / "init", random_model())
    stage = Stage(name="ctc", steps=7, rates={"projector": 1e-2}, seconds=3.0, diffusion=0.0, ctc=1.0)
    logs = {}
    for name, buckets, stops in (("plain", 0, []), ("whole", 3, []), ("parts", 3, [2, 3])):
        recipe = Recipe(
            name=name, init=tmp_path / "init", features=(store.folder,), dev=store.folder, stages=(stage,),
            buckets=buckets, shares={"en": 0.5, "de": 0.5},
        )  # fmt: skip
        for stop in [*stops, None]:
            loop.train(recipe, tmp_path / name, stop_after=stop)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs[name] = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    assert logs["whole"] == logs["parts"]
    assert logs["whole"] != logs["plain"]
    assert len({entry["epoch"] for entry in logs["whole"]}) > 1
