"""Several canvases of one window: what each of them starts from, and their texts as a list, the best first."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from diffasr.diffusion import ctc, vote
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.hotwords import Hotwords, put_in
from diffasr.model.network import Cache
from diffasr.text import LANGUAGES, Tokenizer
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
    tokenizer: Tokenizer, cache: Cache, options: SamplingOptions, hotwords: Hotwords | None = None
) -> list[ctc.Path]:
    """What CTC heard in each row of ``cache``, of which ``options.votes`` in a row are one window.

    The first of a window takes the best path, the others that of CTC's logits with noise on them. Where the options
    start from a sample, every row takes one of CTC's posterior. No draw depends on a neighbour. ``hotwords`` take the
    place of what sounds like them.
    """
    paths, codes = list[ctc.Path](), list(LANGUAGES)
    mended: Callable[[ctc.Path], ctc.Path] | None = None
    for row, slots in enumerate(cache.slots.tolist()):
        logits, number = cache.ctc[row : row + 1, :slots], row % options.votes  # (1, N, C)
        if hotwords is not None:
            language = codes[int(cache.languages[row])]
            mended = partial(put_in, logits=logits[0], tokenizer=tokenizer, hotwords=hotwords, language=language)
        dice = torch.Generator().manual_seed(options.seed * 10_007 + number)
        if options.start == "sample":
            logits = ctc.sampled(logits.float().cpu(), generator=dice)
        elif number:
            logits = ctc.blurred(logits.float().cpu(), most=1.0, generator=dice)
        real = cache.slots[row : row + 1]
        paths += ctc.heard(logits, real, blank=tokenizer.blank, joined=tokenizer.joined, mended=mended)
    return paths


def alternatives(ballots: Sequence[Ballot], spoken: Sequence[Sequence[str]], most: int) -> tuple[Alternative, ...]:
    """The different texts of ``ballots``, ``spoken`` being their words: at most ``most``, by agreement, then by
    likelihood."""
    found: dict[str, Alternative] = {}
    for ballot, score in zip(ballots, vote.agreements(spoken), strict=True):
        known = found.get(ballot.text)
        sure = ballot.avg_logprob if known is None else max(known.avg_logprob, ballot.avg_logprob)
        found[ballot.text] = Alternative(text=ballot.text, score=score, avg_logprob=sure)
    return tuple(sorted(found.values(), key=lambda a: (-a.score, -a.avg_logprob))[:most])
