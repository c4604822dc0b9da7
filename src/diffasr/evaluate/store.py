"""A model and a feature store in, error rates by language out: what training watches."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decode import decode
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.evaluate.score import error_rates
from diffasr.model.checkpoint import Model
from diffasr.model.encoder import stack
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES
from diffasr.train.data import FeatureStore
from diffasr.train.recordings import Recordings

Decoder = Literal["ctc", "ar", "diffusion"]


@torch.inference_mode()
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
        languages = torch.tensor(spoken, device=speech.lengths.device)
        if decoder == "ctc":
            texts = ctc_texts(model, speech)
        elif decoder == "ar":
            texts = ar_texts(model, speech, languages)
        else:
            texts = [d.text for d in decode(model, speech, languages, options or SamplingOptions())]
        for n, text in zip(chosen, texts, strict=True):
            pairs.append((store.utterances[n].text, text, store.utterances[n].language))
    return error_rates(pairs)


def speech_of(store: FeatureStore | Recordings, numbers: Sequence[int], model: Model) -> Speech:
    """What the encoder heard of these utterances, or hears now."""
    like = model.network.encoder.conv1.weight
    if isinstance(store, Recordings):
        mels, lengths = stack([store.mel((n,), np.random.default_rng(0)) for n in numbers])
        return model.network.hear(mels.to(like.device, like.dtype), lengths.to(like.device))
    frames = [store.frames(n) for n in numbers]
    return Speech(
        frames=torch.nn.utils.rnn.pad_sequence(frames, batch_first=True).to(like.device, like.dtype),
        lengths=torch.tensor([len(f) for f in frames], device=like.device),
    )
