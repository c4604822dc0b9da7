"""References and hypotheses in, error rates out."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from diffasr.decode import ctc_texts, decode
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.model.checkpoint import Model
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES, edit_distance, normalise
from diffasr.train.data import FeatureStore

Decoder = Literal["ctc", "diffusion"]


def character_errors(reference: str, hypothesis: str, language: str) -> tuple[int, int]:
    """Edits and characters of one utterance after ``normalise``; spaces count."""
    expected = normalise(reference, language)
    return edit_distance(expected, normalise(hypothesis, language)), len(expected)


def error_rates(pairs: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """Corpus CER of each language from (reference, hypothesis, language): all edits over all characters."""
    edits = dict.fromkeys(LANGUAGES, 0)
    characters = dict.fromkeys(LANGUAGES, 0)
    for reference, hypothesis, language in pairs:
        wrong, size = character_errors(reference, hypothesis, language)
        edits[language] += wrong
        characters[language] += size
    return {code: edits[code] / characters[code] for code in LANGUAGES if characters[code]}


@torch.inference_mode()
def score_store(
    model: Model,
    store: FeatureStore,
    numbers: Sequence[int],
    *,
    decoder: Decoder,
    options: SamplingOptions | None = None,
    rows: int = 16,
) -> dict[str, float]:
    """CER by language of some utterances of a feature store, the language given."""
    names = list(LANGUAGES)
    pairs = []
    ordered = sorted(numbers, key=lambda n: store.spans[n][1])
    for first in range(0, len(ordered), rows):
        chosen = ordered[first : first + rows]
        frames = [store.frames(n) for n in chosen]
        speech = Speech(
            frames=torch.nn.utils.rnn.pad_sequence(frames, batch_first=True),
            lengths=torch.tensor([len(f) for f in frames]),
        )
        languages = torch.tensor([names.index(store.utterances[n].language) for n in chosen])
        if decoder == "ctc":
            texts = ctc_texts(model, speech)
        else:
            texts = [d.text for d in decode(model, speech, languages, options or SamplingOptions())]
        for n, text in zip(chosen, texts, strict=True):
            pairs.append((store.utterances[n].text, text, store.utterances[n].language))
    return error_rates(pairs)
