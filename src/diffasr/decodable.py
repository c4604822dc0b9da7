"""What decoding asks of a network, whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffasr.places import Place, Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = NDArray[np.float32]


class Heard(Protocol):
    """A prefill, of torch's kind or another."""

    @property
    def languages(self) -> Any:
        """(B,) int64: index into ``text.LANGUAGES`` of the language that each row is written in."""
        ...

    @property
    def language_logits(self) -> Any:
        """(B, 6): what the model thinks; of a row whose language it was told, a whisper names that one alone."""
        ...

    @property
    def device(self) -> torch.device:
        """Where a canvas for it must be, for those who make tensors of it."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def labels(self, row: int) -> Floats:
        """(N, C) CTC logits of one row's real audio tokens."""
        ...


class Decodable(Protocol):
    """A diffusion language model that hears.

    What it gives as ``speech``, and as a ``cache``, of the kind ``Heard``, is its own affair.
    """

    @property
    def hands(self) -> int:
        """How many ``parts`` to decode at a time: what is between the network's calls runs on one core."""
        ...

    def inference_mode(self) -> AbstractContextManager[Any]:
        """Inside of it nothing is remembered for training."""
        ...

    def listen(self, features: Sequence[Floats], real: Sequence[int] | None = None) -> Any:
        """What the encoder hears in log-mel features (mels, M) of some clips; real: frames of each that are kept."""
        ...

    def heard(self, frames: Sequence[Floats]) -> Any:
        """The same of clips that an encoder heard before, (T, S) each."""
        ...

    def parts(self, speech: Any) -> Sequence[Any]:
        """What of ``speech`` is best decoded together: all of it, or where nothing is gained by that clip by clip."""
        ...

    def prefill(self, speech: Any, languages: Sequence[int] | None) -> Any:
        """Listen once. ``languages``: (B,) indices, -1 where the model must find out; None: it must for all."""
        ...

    def denoise(
        self,
        canvas: Tensor,
        cache: Any,
        *,
        lengths: Tensor,
        previous: Tensor | None = None,
        hints: Tensor | None = None,
    ) -> Tensor:
        """One step: (B, L) noisy tokens to (B, L, V) logits of the clean ones.

        lengths: (B,) canvas places that each row uses. previous: (B, L, V) logits of the step before
        (self-conditioning). hints: (B, L) the audio token at which CTC puts each place, -1 for none.
        """
        ...

    def reader(
        self,
        cache: Any,
        lengths: Sequence[int],
        guidance: Sequence[float],
        *,
        end: int,
        shows_beliefs: bool = False,
    ) -> Reader:
        """What reads texts of the rows of ``cache``.

        lengths: canvas places of each. guidance: how far what is said of each is pushed away from what would be said
        without the sound. end: the token. shows_beliefs: whether each reading is shown what the one before believed.
        Raises OptionError for guidance where the backbone can't do without the sound.
        """
        ...

    def remember(self, cache: Any, tokens: Sequence[int]) -> Any:
        """The cache with the text that was said before, of all rows; the end of it where it is long.

        Raises OptionError where the backbone has no place for it.
        """
        ...

    def select(self, cache: Any, rows: Sequence[int]) -> Any:
        """The cache of ``rows`` (R,) only, in that order; a row may come twice."""
        ...

    def without_audio(self, cache: Any, rows: Tensor) -> Any:
        """The same cache, in which ``rows`` (B,) bool hear nothing: they read a canvas by its text alone.

        Their hints are the caller's to drop. Raises OptionError where the backbone has no such reading.
        """
        ...

    def ctc_rows(self, speech: Any) -> list[Floats]:
        """(N, C) CTC logits of the real audio tokens of each row."""
        ...

    def ar_reader(self, cache: Any) -> Callable[[Sequence[Sequence[int]]], list[Place]]:
        """What is said behind texts (B of them, of one length) with the causal mask on. Each call's are one token
        longer than those of the call before; those of the first are empty."""
        ...


def decodable(network: Any) -> Decodable:
    """``network`` itself, or what makes such a one of a network of torch's."""
    if hasattr(network, "parts"):
        return network
    from diffasr.torched import Torched

    return Torched(network)
