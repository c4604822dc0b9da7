"""What the sampler's rows are told at a step: the network's logits, guided and fused with CTC's as the options say.

The sampler stays on the CPU, with its dice; the network's work, and what it says of each token, may be elsewhere.
"""

import torch
from torch import Tensor

from diffasr.ballots import guidance
from diffasr.decodable import Heard, decodable
from diffasr.diffusion.fuse import fused, guided
from diffasr.diffusion.options import SamplingOptions
from diffasr.model.loaded import Model


class Asking:
    """Asks about the rows that are still going, and forgets what belongs to the others."""

    def __init__(self, model: Model, cache: Heard, lengths: Tensor, options: SamplingOptions) -> None:
        """lengths: (B,) canvas places that each row of ``cache`` uses.

        Raises OptionError for guidance where the backbone can't do without the sound.
        """
        self.network, self.options = decodable(model.network), options
        device = cache.device
        self.lengths = lengths.to(device)
        self.openings = torch.tensor(model.tokenizer.openings if options.ctc_weight > 0 else (), device=device)
        self.rows = torch.arange(len(lengths))
        """(R,) of the batch, those that are still going."""
        self.cache = cache
        """Of ``rows``; with guidance of them twice, the second time without the sound."""
        self.guidance = torch.tensor(guidance(model, cache, options))
        """(B,) of each row."""
        self.times = 2 if bool((self.guidance > 0).any()) else 1
        if self.times == 2:
            twice = self.network.select(cache, [*range(len(lengths))] * 2)
            is_deaf = torch.arange(2 * len(lengths)) >= len(lengths)
            self.cache = self.network.without_audio(twice, is_deaf.to(device))

    def __call__(self, canvas: Tensor, previous: Tensor | None, rows: Tensor, hints: Tensor) -> Tensor:
        """Logits (R, L, V) of the canvas (R, L) of ``rows`` (R,), which are among those of the call before.

        previous: (R, L, V) logits of the step before, or None. hints: (B, L) of the whole batch.
        """
        self._let_go(rows)
        device, times, weight = self.cache.device, self.times, self.options.ctc_weight
        where = rows.to(device)
        known = hints[where]  # (R, L)
        logits = self.network.denoise(
            canvas.to(device).repeat(times, 1),
            self.cache,
            lengths=self.lengths[where].repeat(times),
            previous=None if previous is None else previous.repeat(times, 1, 1),
            hints=known if times == 1 else torch.cat((known, torch.full_like(known, -1))),
        )
        if times == 2:
            told, untold = logits.chunk(2)
            logits = guided(told, untold, self.guidance[rows].to(told)[:, None, None])
        if weight > 0:
            logits = fused(logits, _labels(self.cache, len(rows)).to(device), known, self.openings, weight)
        return logits

    def _let_go(self, rows: Tensor) -> None:
        """Keep of the cache what ``rows`` need."""
        if len(rows) < len(self.rows):
            places = torch.searchsorted(self.rows, rows)
            if self.times == 2:
                places = torch.cat((places, places + len(self.rows)))
            self.cache, self.rows = self.network.select(self.cache, places.tolist()), rows


def _labels(cache: Heard, count: int) -> Tensor:
    """CTC's logits (B, N, C) of the first rows."""
    rows = [torch.as_tensor(cache.labels(row)) for row in range(count)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
