"""A model and a feature store in, error rates by language out: what training watches."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decodable import decodable
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.score import error_rates
from diffasr.model.loaded import Model
from diffasr.text import LANGUAGES
from diffasr.train.data import FeatureStore
from diffasr.train.recordings import Recordings

Decoder = Literal["ctc", "ar", "diffusion"]


def score_store(
    model: Model,
    store: FeatureStore | Recordings,
    numbers: Sequence[int],
    *,
    decoder: Decoder,
    options: SamplingOptions | None = None,
    rows: int = 16,
) -> dict[str, float]:
    """CER by language of some utterances of a feature store or a manifest, the language given."""
    names = list(LANGUAGES)
    pairs = []
    ordered = sorted(numbers, key=lambda n: store.spans[n][1])
    for first in range(0, len(ordered), rows):
        chosen = ordered[first : first + rows]
        speech = speech_of(store, chosen, model)
        spoken = [names.index(store.utterances[n].language) for n in chosen]
        if decoder == "ctc":
            texts = ctc_texts(model, speech)
        elif decoder == "ar":
            texts = ar_texts(model, speech, spoken)
        else:
            texts = [d.text for d in decode(model, speech, spoken, options or SamplingOptions())]
        for n, text in zip(chosen, texts, strict=True):
            pairs.append((store.utterances[n].text, text, store.utterances[n].language))
    return error_rates(pairs)


def speech_of(store: FeatureStore | Recordings, numbers: Sequence[int], model: Model) -> Any:
    """What the encoder heard of these utterances, or hears now."""
    if isinstance(store, Recordings):
        return decodable(model.network).listen([store.mel((n,), np.random.default_rng(0)).numpy() for n in numbers])
    return decodable(model.network).heard([store.frames(n).float().numpy() for n in numbers])
