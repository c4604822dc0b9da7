"""Several canvases of one window: what each of them starts from, and their texts as a list, the best first."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from diffasr.diffusion import ctc, vote
from diffasr.diffusion.beam import Beam, BeamOptions
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.hotwords import Hotwords, put_in
from diffasr.model.checkpoint import Model
from diffasr.model.config import BY_LANGUAGE
from diffasr.model.network import Cache
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
    model: Model, cache: Cache, options: SamplingOptions, hotwords: Hotwords | None = None
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
    for row, slots in enumerate(cache.slots.tolist()):
        logits, number = cache.ctc[row : row + 1, :slots], row % options.votes  # (1, N, C)
        language = codes[int(cache.languages[row])]
        if hotwords is not None:
            mended = partial(put_in, logits=logits[0], tokenizer=tokenizer, hotwords=hotwords, language=language)
        dice = torch.Generator().manual_seed(options.seed * 10_007 + number)
        if options.start == "sample":
            logits = ctc.sampled(logits.float().cpu(), generator=dice)
        elif number:
            logits = ctc.blurred(logits.float().cpu(), most=1.0, generator=dice)
        (best,) = ctc.best_paths(logits, cache.slots[row : row + 1], blank=tokenizer.blank)
        is_heard = bool(best.tokens)  # with a bonus for each letter a beam would write a word of noise
        if is_heard and options.start == "ctc" and options.beam > 0 and (found := beam_of(model, language, options)):
            best = found.best(logits[0].float().log_softmax(-1).cpu().numpy())
        paths.append(ctc.in_tokens(best if mended is None else mended(best), tokenizer.joined))
    return paths


def beam_of(model: Model, language: str, options: SamplingOptions) -> Beam | None:
    """What looks for the best text in a language; None where the checkpoint has no model of letters."""
    spelling = model.tokenizer.spelling
    if model.letters is None or spelling is None:
        return None
    weight, bonus = (told(model, options, name, language) for name in ("letter_weight", "letter_bonus"))
    wanted = BeamOptions(size=options.beam, weight=weight, bonus=bonus)
    letters = model.letters.language(language)
    return Beam(spelling.writings, letters, wanted, blank=model.tokenizer.blank)


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
