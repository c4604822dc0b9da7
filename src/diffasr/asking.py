"""What is asked of a network about canvases that are read as a whole, guided where that is wanted.

Whoever asks stays on the CPU, with its dice; the network's work, and what it says of each token, may be elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffasr.decodable import Decodable, Heard
from diffasr.diffusion.fuse import guided


class Asking:
    """Asks about the rows that are still going, and forgets what belongs to the others."""

    def __init__(self, network: Decodable, cache: Heard, lengths: Sequence[int], guidance: Sequence[float]) -> None:
        """lengths: (B,) canvas places that each row of ``cache`` uses. guidance: (B,) how far what is said of each is
        pushed away from what is said without the sound.

        Raises OptionError for guidance where the backbone can't do without the sound.
        """
        self._network, self._device = network, cache.device
        self._lengths = torch.tensor(lengths, device=cache.device)
        self._guidance = torch.tensor(guidance)
        self._rows = torch.arange(len(lengths))  # of the batch, those that are still going
        self._cache = cache  # of them; with guidance of them twice, the second time without the sound
        self._times = 2 if bool((self._guidance > 0).any()) else 1
        if self._times == 2:
            twice = network.select(cache, [*range(len(lengths))] * 2)
            is_deaf = torch.arange(2 * len(lengths)) >= len(lengths)
            self._cache = network.without_audio(twice, is_deaf.to(cache.device))

    def __call__(self, canvas: Tensor, previous: Tensor | None, rows: Tensor, hints: Tensor) -> Tensor:
        """Logits (R, L, V) of the canvas (R, L) of ``rows`` (R,), which are among those of the call before.

        previous: (R, L, V) logits of the step before, or None. hints: (R, L), see ``model.network``.
        """
        self._let_go(rows)
        times, known = self._times, hints.to(self._device)
        logits = self._network.denoise(
            canvas.to(self._device).repeat(times, 1),
            self._cache,
            lengths=self._lengths[rows.to(self._device)].repeat(times),
            previous=None if previous is None else previous.repeat(times, 1, 1),
            hints=known if times == 1 else torch.cat((known, torch.full_like(known, -1))),
        )
        if times == 1:
            return logits
        told, untold = logits.chunk(2)
        return guided(told, untold, self._guidance[rows].to(told)[:, None, None])

    def _let_go(self, rows: Tensor) -> None:
        """Keep of the cache what ``rows`` need."""
        if len(rows) < len(self._rows):
            places = torch.searchsorted(self._rows, rows)
            if self._times == 2:
                places = torch.cat((places, places + len(self._rows)))
            self._cache, self._rows = self._network.select(self._cache, places.tolist()), rows
