"""The map is the likeliest one, recovers what made the data, and what it stores travels with the model."""

import importlib.util
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, random_speech, wake
from hypothesis import given
from hypothesis import strategies as st

from diffasr.confidence import RIDGE, features, fit, judged, probability
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import ModelError, OptionError
from diffasr.evaluate.breakdown import reliability
from diffasr.model import checkpoint
from diffasr.model.config import Calibration, ModelConfig
from diffasr.model.loaded import Model
from diffasr.train.data import FeatureStore
from diffasr.words import Evidence, HeardWord

TRUE = Calibration(bias=2.0, weights={"letters": 0.8, "written": 1.5, "dissent": -3.0})


def drawn(count: int, seed: int = 0) -> tuple[list[Evidence], list[bool]]:
    """Words of random evidence, right as often as TRUE says."""
    dice = np.random.default_rng(seed)
    evidence = [
        Evidence(letters=-dice.exponential(2), written=-dice.exponential(1), agreement=dice.choice([1, 2 / 3, 1 / 3]))
        for _ in range(count)
    ]
    return evidence, [bool(dice.random() < probability(e, TRUE)) for e in evidence]


def test_it_finds_the_map_that_made_the_data_and_is_calibrated_on_new_data() -> None:
    found = fit(*drawn(12_000))
    varied = {"letters", "written", "letters_probability", "written_probability", "dissent"}
    assert set(found.weights) == varied, "what never varies has no weight"
    evidence, is_right = drawn(5000, seed=1)
    sure = [probability(e, found) for e in evidence]
    assert np.mean([abs(p - probability(e, TRUE)) for p, e in zip(sure, evidence, strict=True)]) < 0.02
    assert reliability(list(zip(sure, is_right, strict=True)))["ece"] < 0.03


def test_each_part_of_the_evidence_counts() -> None:
    parts = [f.name for f in fields(Evidence)]
    plain = features(Evidence(**dict.fromkeys(parts, -1.0)))
    for name in parts:
        changed = features(Evidence(**dict.fromkeys(parts, -1.0) | {name: -2.0}))
        assert {k for k in plain if plain[k] != changed[k]} == (
            {"dissent"} if name == "agreement" else {name, f"{name}_probability"}
        )
        if name != "agreement":
            assert changed[f"{name}_probability"] == pytest.approx(math.exp(changed[name]))


def test_no_other_map_nearby_is_likelier() -> None:
    evidence, is_right = drawn(300)
    found = fit(evidence, is_right)
    spread = {n: np.std([features(e)[n] for e in evidence]) for n in found.weights}

    def loss(calibration: Calibration) -> float:
        sure = [probability(e, calibration) for e in evidence]
        fits = -sum(math.log(p if right else 1 - p) for p, right in zip(sure, is_right, strict=True))
        return fits + RIDGE / 2 * sum((w * spread[n]) ** 2 for n, w in calibration.weights.items())

    least = loss(found)
    for name in found.weights:
        for change in (-0.05, 0.05):
            moved = found.weights | {name: found.weights[name] + change}
            assert loss(Calibration(bias=found.bias, weights=moved)) > least
    for change in (-0.05, 0.05):
        assert loss(Calibration(bias=found.bias + change, weights=found.weights)) > least


@given(st.floats(-20, 0), st.floats(-20, 0), st.floats(0, 1))
def test_it_is_a_probability_and_grows_with_what_speaks_for_the_word(a: float, b: float, agreement: float) -> None:
    less, more = sorted((a, b))
    low = probability(Evidence(letters=less, agreement=agreement), TRUE)
    high = probability(Evidence(letters=more, agreement=agreement), TRUE)
    assert 0 <= low <= high <= 1
    assert probability(Evidence(letters=less), TRUE) >= low


def test_words_keep_all_but_their_confidence_and_without_a_map_that_too() -> None:
    words = [HeardWord(word="a", first=1, last=2, probability=0.3, evidence=Evidence(letters=-1.2))]
    assert judged(words, None) == tuple(words)
    (found,) = judged(words, TRUE)
    assert found.confidence == probability(words[0].evidence, TRUE)
    assert replace(found, confidence=None) == words[0]


def test_votes_that_disagree_make_a_word_doubtful_with_any_map_or_none() -> None:
    blind = Calibration(bias=2.0, weights={"letters": 0.8})  # fitted where nothing was voted on
    for calibration in (None, blind, TRUE):
        sure = []
        for agreement in (1.0, 2 / 3, 1 / 3):
            evidence = Evidence(letters=-1.2, agreement=agreement)
            (word,) = judged([HeardWord(word="a", first=1, last=2, probability=0.3, evidence=evidence)], calibration)
            sure.append(word.belief)
        assert 1 > sure[0] > sure[1] > sure[2] > 0
        if calibration is not TRUE:
            assert sure[2] == pytest.approx(sure[0] / 3)


def test_one_kind_of_word_or_a_foreign_map_is_an_error() -> None:
    with pytest.raises(OptionError, match="right words and wrong ones"):
        fit([Evidence(), Evidence(letters=-1)], [True, True])
    with pytest.raises(ModelError, match=r"taste.*calibrate it again"):
        probability(Evidence(), Calibration(bias=0.0, weights={"taste": 1.0}))


def test_a_checkpoint_carries_its_calibration(tmp_path: Path) -> None:
    model = random_model()
    checkpoint.save(tmp_path, Model(network=model.network, tokenizer=model.tokenizer, config=model.config))
    assert checkpoint.load(tmp_path).config.calibration is None
    checkpoint.save(tmp_path, replace(model, config=replace(model.config, calibration=TRUE)))
    assert checkpoint.load(tmp_path).config.calibration == TRUE
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    with pytest.raises(ModelError, match="not all numbers"):
        ModelConfig.from_json(text.replace("2.0", '"much"'))
    with pytest.raises(ModelError, match="calibration"):
        ModelConfig.from_json(text.replace('"bias"', '"base"'))


def test_decoding_uses_the_map_of_its_model() -> None:
    plain = wake(random_model())
    speech, options = random_speech([90, 120]), SamplingOptions(steps=2)
    known = torch.tensor([0, 1])
    before = decode(plain, speech, known, options)
    assert any(d.words for d in before)
    after = decode(replace(plain, config=replace(plain.config, calibration=TRUE)), speech, known, options)
    for raw, sure in zip(before, after, strict=True):
        assert judged(raw.words, TRUE) == sure.words
        assert all(w.confidence is None for w in raw.words)
        assert len(raw.tokens) == len(raw.token_logprobs)
        assert plain.tokenizer.decode(raw.tokens) == raw.text


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """recipes/mini/calibrate.py, which is a script."""
    place = Path(__file__).parents[1] / "recipes" / "mini" / "calibrate.py"
    spec = importlib.util.spec_from_file_location("calibrate", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrate"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_no_speaker_is_judged_by_a_map_that_knows_him(recipe: ModuleType) -> None:
    evidence, is_right = drawn(400)

    def made(right: list[bool]) -> list[Any]:
        return [
            recipe.Judgement(
                word=HeardWord(word="w", first=0, last=0, probability=0.5, evidence=e),
                is_right=r, language="en", segment=(1, n // 8), half=n // 8 % 2,
            )
            for n, (e, r) in enumerate(zip(evidence, right, strict=True))
        ]  # fmt: skip

    judged_words = made(is_right)
    before = recipe.held_out(judged_words)
    turned = made([r if j.half else not r for r, j in zip(is_right, judged_words, strict=True)])
    after = recipe.held_out(turned)
    for one, other, j in zip(before, after, judged_words, strict=True):
        assert (one == other) == (j.half == 0), "his own half's labels must not count, the other's must"
    found = recipe.report(judged_words, before)
    assert found["after"]["all"]["ece"] < found["before"]["all"]["ece"]
    assert found["after"]["segments"] == {"segments": 50, "mean_gap": pytest.approx(0.1, abs=0.05)}
    assert "| all | 400 |" in recipe.table(found)


def test_the_recipe_judges_every_word_and_stores_into_the_folder_alone(
    recipe: ModuleType, store: FeatureStore, tmp_path: Path
) -> None:
    model = wake(random_model())
    found = list(recipe.judgements(model, store, 1, 2))
    assert {j.segment[0] for j in found} == {1}
    assert {j.language for j in found} <= {u.language for u in store.utterances}
    assert all(len(j.word.word) > 0 and isinstance(j.is_right, bool) for j in found)
    checkpoint.save(tmp_path, model)
    weights = (tmp_path / "model.safetensors").read_bytes()
    recipe.store_calibration(tmp_path, TRUE)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert checkpoint.load(tmp_path).config == replace(model.config, calibration=TRUE)
    assert not list(tmp_path.glob("*.part"))
