"""What diffusion is compared with: the same checkpoint's CTC alone, and its decoder token by token."""

from collections.abc import Sequence
from typing import Any

from diffasr.ballots import ballot_paths, joint_rows
from diffasr.decodable import decodable
from diffasr.diffusion import ctc
from diffasr.diffusion.options import SamplingOptions
from diffasr.model.loaded import Model


def ctc_texts(model: Model, speech: Any) -> list[str]:
    """CTC's best path of each row as text, without any denoising."""
    tokenizer = model.tokenizer
    with decodable(model.network).inference_mode():
        paths = [ctc.best_path(logits, blank=tokenizer.blank) for logits in decodable(model.network).ctc_rows(speech)]
    return [tokenizer.decode(tokenizer.alphabet[label] for label in path.tokens) for path in paths]


def beam_texts(model: Model, speech: Any, languages: Sequence[int] | None, options: SamplingOptions) -> list[str]:
    """What joint writing starts from, without any denoising: of a beam where the checkpoint has a model of letters."""
    with decodable(model.network).inference_mode():
        cache = decodable(model.network).prefill(speech, languages)
        return [model.tokenizer.decode(path.tokens) for path in ballot_paths(model, cache, options)]


def ar_texts(
    model: Model,
    speech: Any,
    languages: Sequence[int] | None,
    *,
    most: int = 160,
    together: SamplingOptions | None = None,
) -> list[str]:
    """Each row written token by token with the causal mask on, greedily, at most ``most`` tokens: the comparison.

    Keys and values of the text so far are kept. together: how CTC and the model of letters have a say, as in joint
    writing; None: they have none. Raises OptionError where they are asked and CTC has no short labels.
    """
    end = model.tokenizer.end
    with decodable(model.network).inference_mode():
        cache = decodable(model.network).prefill(speech, languages)
        texts: list[list[int]] = [[] for _ in range(len(cache))]
        read = decodable(model.network).ar_reader(cache)
        joint = None if together is None else joint_rows(model, cache, together)
        for _ in range(most):
            if all(text[-1:] == [end] for text in texts):
                break
            for row, (text, place) in enumerate(zip(texts, read(texts), strict=True)):
                if text[-1:] == [end]:
                    text.append(end)
                else:
                    text.append(place.tokens[0] if joint is None else joint[row].next(text, place))
    return [model.tokenizer.decode(text) for text in texts]
