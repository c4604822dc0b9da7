"""Error rates equal jiwer's, and scoring a store is decoding it."""

import jiwer
import pytest
import torch
from conftest import random_model, write_store
from hypothesis import given
from hypothesis import strategies as st

from diffasr.decode import ctc_texts, decode
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.evaluate.score import character_errors, error_rates, score_store
from diffasr.model.network import Speech
from diffasr.text import Tokenizer, normalise
from diffasr.train.data import FeatureStore

texts = st.text("abc 'éß,", max_size=12)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_corpus_rates_equal_jiwers(pairs: list[tuple[str, str]]) -> None:
    pairs = [("a" + reference, hypothesis) for reference, hypothesis in pairs]  # jiwer refuses empty references
    rates = error_rates([(reference, hypothesis, "fr") for reference, hypothesis in pairs])
    references, hypotheses = ([normalise(pair[side], "fr") for pair in pairs] for side in (0, 1))
    assert rates == {"fr": pytest.approx(jiwer.cer(references, hypotheses))}


def test_errors_are_counted_on_normal_forms_and_spaces_count() -> None:
    assert character_errors("Hello, World!", "hello world", "en") == (0, 11)
    assert character_errors("hello world", "helloworld", "en") == (1, 11)
    assert character_errors("漢語。", "汉 语", "zh") == (0, 2)
    assert character_errors("", "ab", "en") == (2, 0)


def test_languages_are_kept_apart_and_rates_are_pooled() -> None:
    pairs = [("abcd", "abcd", "en"), ("ab", "", "en"), ("xy", "xz", "de"), ("...", "x", "es")]
    assert error_rates(pairs) == {"en": 2 / 6, "de": 1 / 2}, "no characters, no rate"
    assert error_rates([]) == {}


@pytest.mark.parametrize("decoder", ["ctc", "diffusion"])
def test_scoring_a_store_is_decoding_it_with_the_language_given(tokenizer: Tokenizer, tmp_path, decoder) -> None:  # type: ignore[no-untyped-def]
    says = [("the cat", "en"), ("a", "en"), ("die katze", "de"), ("say them", "en"), ("ja", "de")]
    store, model, options = write_store(tmp_path / "s", says, tokenizer), random_model(), SamplingOptions(steps=2)
    numbers = [4, 0, 2]
    pairs = []
    for n in numbers:
        speech = Speech(frames=store.frames(n)[None], lengths=torch.tensor([len(store.frames(n))]))
        if decoder == "ctc":
            (text,) = ctc_texts(model, speech)
        else:
            (result,) = decode(model, speech, torch.tensor([0 if says[n][1] == "en" else 1]), options)
            assert result.language == says[n][1]
            text = result.text
        pairs.append((says[n][0], text, says[n][1]))
    for rows in (1, 2, 16):
        assert score_store(model, store, numbers, decoder=decoder, options=options, rows=rows) == error_rates(pairs)


def test_without_options_it_decodes_as_by_default(store: FeatureStore) -> None:
    model = random_model()
    assert score_store(model, store, [1], decoder="diffusion") == score_store(
        model, store, [1], decoder="diffusion", options=SamplingOptions()
    )
