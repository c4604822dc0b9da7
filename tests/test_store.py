"""Scoring a store is decoding it."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import random_model, write_store

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.score import error_rates
from diffasr.evaluate.store import Decoder, score_store
from diffasr.model.network import Speech
from diffasr.text import Tokenizer
from diffasr.train.data import FeatureStore


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_scoring_a_store_is_decoding_it_with_the_language_given(
    tokenizer: Tokenizer, tmp_path: Path, decoder: Decoder
) -> None:
    says = [("the cat", "en"), ("a", "en"), ("die katze", "de"), ("say them", "en"), ("ja", "de")]
    store, model, options = write_store(tmp_path / "s", says, tokenizer), random_model(), SamplingOptions(steps=2)
    numbers = [4, 0, 2]
    pairs = []
    for n in numbers:
        speech = Speech(frames=store.frames(n)[None], lengths=torch.tensor([len(store.frames(n))]))
        language = [0 if says[n][1] == "en" else 1]
        if decoder == "ctc":
            (text,) = ctc_texts(model, speech)
        elif decoder == "ar":
            (text,) = ar_texts(model, speech, language)
        else:
            (result,) = decode(model, speech, language, options)
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
