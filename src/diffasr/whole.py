"""A network of torch's as a reader of texts: it reads canvases as a whole, all rows together, at every step.

See ``places.Reader``; ``runtime.reader`` reads only what has changed.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from diffasr.asking import Asking
from diffasr.decodable import Decodable, Heard
from diffasr.diffusion.sampler import WORTHWHILE
from diffasr.errors import OptionError
from diffasr.places import FEW, Place


class Whole:
    """Reads texts as canvases; finished rows leave the batch."""

    def __init__(
        self,
        network: Decodable,
        cache: Heard,
        lengths: Sequence[int],
        guidance: Sequence[float],
        *,
        end: int,
        shows_beliefs: bool = False,
    ) -> None:
        """lengths: (B,) canvas places of each row. guidance: how far each is pushed away from its reading without the
        sound. shows_beliefs: whether each step is shown what the step before believed.

        Raises OptionError for guidance where the backbone can't do without the sound.
        """
        self._ask = Asking(network, cache, lengths, guidance)
        self._lengths, self._end, self._shows = list(lengths), end, shows_beliefs
        self._rows = list(range(len(lengths)))
        self._previous: Tensor | None = None

    looks_ahead = False
    """See ``places.Reader``: a place costs as much as a canvas here."""

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        """See ``places.Reader``."""
        raise OptionError("whole canvases are read here, no single places: ahead can only be 0")

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        """See ``places.Reader``."""
        wanted = dict(texts)
        self._let_go(set(wanted))
        canvas = torch.full((len(self._rows), max(self._lengths)), self._end)
        for place, row in enumerate(self._rows):
            text = wanted.get(row, ())
            canvas[place, : len(text)] = torch.tensor(text, dtype=torch.long)
        logits = self._ask(canvas, self._previous, torch.tensor(self._rows), torch.full_like(canvas, -1))  # (R, L, V)
        self._previous = logits if self._shows else None
        told = dict(zip(self._rows, logits, strict=True))
        sizes = {row: min(len(text) + 1, self._lengths[row]) for row, text in texts}
        return [places_of(told[row][: sizes[row]], [*text, self._end][: sizes[row]]) for row, text in texts]

    def _let_go(self, wanted: set[int]) -> None:
        """Ask no more about other rows than those ``wanted``, where that is worthwhile."""
        if len(self._rows) - len(wanted) < max(1, WORTHWHILE * len(self._rows)):
            return
        kept = [place for place, row in enumerate(self._rows) if row in wanted]
        self._previous = None if self._previous is None else self._previous[kept]
        self._rows = [self._rows[place] for place in kept]


def places_of(logits: Tensor, own: Sequence[int] = ()) -> list[Place]:
    """What (n, V) logits say of n places. own: (n,) what stands there, where that is known: who asks for another token
    that is not among the likeliest waits for the device that holds the logits."""
    logits = logits.float()
    shares = logits - logits.logsumexp(-1, keepdim=True)
    top = shares.topk(min(FEW, shares.shape[1]), dim=-1)
    told = torch.tensor(own or [0] * len(shares), device=shares.device)
    mine = zip(told.tolist(), shares.gather(1, told[:, None])[:, 0].tolist(), strict=True)
    rows = zip(top.indices.tolist(), top.values.tolist(), shares, mine, strict=True)
    return [Place(tokens, values, partial(_of, row, *known)) for tokens, values, row, known in rows]


def _of(row: Tensor, own: int, score: float, token: int) -> float:
    return score if token == own else float(row[token])
