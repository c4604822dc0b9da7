"""Several canvases of one window: what each of them starts from, and their texts as a list, the best first."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from diffasr.decodable import Heard
from diffasr.diffusion import ctc, vote
from diffasr.diffusion.beam import Beam, BeamOptions
from diffasr.diffusion.fluency import Fluency
from diffasr.diffusion.joint import Joint
from diffasr.diffusion.lattice import Sound
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.hotwords import Hotwords, put_in
from diffasr.model.config import BY_LANGUAGE
from diffasr.model.loaded import Model
from diffasr.text import LANGUAGES
from diffasr.transcript import Alternative


class Ballot(Protocol):
    """What one canvas says."""

    @property
    def text(self) -> str:
        """See Decoded."""
        ...

    @property
    def avg_logprob(self) -> float:
        """See Decoded."""
        ...


def ballot_paths(
    model: Model, cache: Heard, options: SamplingOptions, hotwords: Hotwords | None = None
) -> list[ctc.Path]:
    """What CTC heard in each row of ``cache``, of which ``options.votes`` in a row are one window.

    It is CTC's best path, or the best text of a beam where the checkpoint has a model of letters and that path is not
    empty. The first of a window takes CTC's logits as they are, the others with noise on them. Where the options start
    from a sample, every row takes one of CTC's posterior. No draw depends on a neighbour. ``hotwords`` take the place
    of what sounds like them.
    """
    tokenizer = model.tokenizer
    paths, codes = list[ctc.Path](), list(LANGUAGES)
    mended: Callable[[ctc.Path], ctc.Path] | None = None
    for row, language in enumerate(codes[number] for number in cache.languages.tolist()):
        logits, number = cache.labels(row), row % options.votes  # (N, C)
        if hotwords is not None:
            mended = partial(put_in, logits=logits, tokenizer=tokenizer, hotwords=hotwords, language=language)
        dice = generator_of(options.seed, number)
        if options.start == "sample":
            logits = ctc.sampled(logits, generator=dice)
        elif number:
            logits = ctc.blurred(logits, most=1.0, generator=dice)
        best = ctc.best_path(logits, blank=tokenizer.blank)
        is_heard = bool(best.tokens)  # with a bonus for each letter a beam would write a word of noise
        if is_heard and options.start == "ctc" and options.beam > 0 and (found := beam_of(model, language, options)):
            best = found.best(ctc.log_softmax(logits))
        paths.append(ctc.in_tokens(best if mended is None else mended(best), tokenizer.joined))
    return paths


def generator_of(seed: int, *more: int) -> np.random.Generator:
    """Of any whole number, one below 0 too; ``more`` numbers from 0 up make other draws of it."""
    return np.random.default_rng([abs(seed), int(seed < 0), *more])


def beam_of(model: Model, language: str, options: SamplingOptions) -> Beam | None:
    """What looks for the best text in a language; None where the checkpoint has no model of letters."""
    spelling = model.tokenizer.spelling
    if model.letters is None or spelling is None:
        return None
    weight, bonus = (told(model, options, name, language) for name in ("letter_weight", "letter_bonus"))
    wanted = BeamOptions(size=options.beam, weight=weight, bonus=bonus)
    letters = model.letters.language(language)
    return Beam(spelling.writings, letters, wanted, blank=model.tokenizer.blank)


def joint_rows(model: Model, cache: Heard, options: SamplingOptions) -> list[Joint]:
    """For each row of ``cache`` what CTC and the denoiser write together. Raises OptionError without short labels."""
    tokenizer, codes = model.tokenizer, list(LANGUAGES)
    spelling = tokenizer.spelling
    if spelling is None:
        raise OptionError(f"CTC of {model.config.name} has no short labels to spell with: it can't write together")
    joint = []
    for row in range(len(cache)):
        code, fluency = codes[int(cache.languages[row])], None
        if model.letters is not None:
            weight, bonus = (told(model, options, name, code) for name in ("letter_weight", "letter_bonus"))
            fluency = Fluency(model.letters.language(code), spelling, weight=weight, bonus=bonus)
        joint.append(
            Joint(
                Sound(ctc.log_softmax(cache.labels(row)), blank=tokenizer.blank),
                spelling,
                end=tokenizer.end,
                weight=told(model, options, "joint_weight", code),
                confidence=options.confidence,
                caution=told(model, options, "caution", code),
                fluency=fluency,
            )
        )
    return joint


def guidance(model: Model, cache: Heard, options: SamplingOptions) -> list[float]:
    """How far each row of ``cache`` is guided."""
    if options.guidance is None and options.accept != "joint":
        return [0.0] * len(cache)
    codes = list(LANGUAGES)
    return [told(model, options, "guidance", codes[index]) for index in cache.languages.tolist()]


def told(model: Model, options: SamplingOptions, name: str, language: str) -> float:
    """One of the options that a checkpoint may set for a language."""
    asked: float | None = getattr(options, name)
    return model.config.decoding.get(language, {}).get(name, BY_LANGUAGE[name]) if asked is None else asked


def alternatives(ballots: Sequence[Ballot], spoken: Sequence[Sequence[str]], most: int) -> tuple[Alternative, ...]:
    """The different texts of ``ballots``, ``spoken`` being their words: at most ``most``, by agreement, then by
    likelihood."""
    found: dict[str, Alternative] = {}
    for ballot, score in zip(ballots, vote.agreements(spoken), strict=True):
        known = found.get(ballot.text)
        sure = ballot.avg_logprob if known is None else max(known.avg_logprob, ballot.avg_logprob)
        found[ballot.text] = Alternative(text=ballot.text, score=score, avg_logprob=sure)
    return tuple(sorted(found.values(), key=lambda a: (-a.score, -a.avg_logprob))[:most])
