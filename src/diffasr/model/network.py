"""What every backbone offers as a torch module: all that training knows of it, and ``torched`` for those who decode.

``prefill`` listens once; ``denoise`` is called once a step and leaves the cache as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What the frozen encoder heard."""

    frames: Tensor
    """(B, T, S) float."""
    lengths: Tensor
    """(B,) int64: real frames of each row."""

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One prefill: read by every step, changed by none."""

    audio: Tensor
    """(B, N, D) audio tokens."""
    slots: Tensor
    """(B,) int64: real audio tokens of each row."""
    ctc: Tensor
    """(B, N, C) CTC logits."""
    languages: Tensor
    """(B,) int64: index into ``text.LANGUAGES`` of the language that each row is written in."""
    language_logits: Tensor
    """(B, 6): what the model thinks; of a row whose language it was told, a whisper names that one alone."""
    memory: Any
    """The backbone's own keys and values."""
    context: Tensor | None = None
    """(U,) int64: the end of the text that was said before; see ``remember``."""


class Network(Protocol):
    """A diffusion language model that hears."""

    def hear(self, mel: Tensor, lengths: Tensor) -> Speech:
        """Run the frozen encoder on (B, mels, M) log-mel features, ``lengths`` (B,) of them real."""
        ...

    def prefill(self, speech: Speech, languages: Tensor | None) -> Cache:
        """Listen once. ``languages``: (B,) indices, -1 where the model must find out; None: it must for all."""
        ...

    def denoise(
        self,
        canvas: Tensor,
        cache: Cache,
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

    def slots(self, speech: Speech) -> Tensor:
        """(B,) real audio tokens of each row."""
        ...

    def remember(self, cache: Cache, tokens: Sequence[int]) -> Cache:
        """The cache with the text that was said before, of all rows; the end of it where it is long.

        Raises OptionError where the backbone has no place for it.
        """
        ...

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache of ``rows`` (R,) only, in that order; a row may come twice."""
        ...

    def without_audio(self, cache: Cache, rows: Tensor) -> Cache:
        """The same cache, in which ``rows`` (B,) bool hear nothing: they read a canvas by its text alone.

        Their hints are the caller's to drop. Raises OptionError where the backbone has no such reading.
        """
        ...

    def ctc_logits(self, speech: Speech, labels: Tensor | None = None) -> Tensor:
        """(B, N, C) logits of each audio token over CTC's labels, or over ``labels`` (C,) of them only.

        A label stands for a token of the tokenizer's ``alphabet``; the blank is the end token.
        """
        ...

    def ar_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Causal logits: (B, U) text tokens to (B, U + 1, V), of which row u predicts token u."""
        ...

    def ar_reader(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """The same token by token, with a memory: each call reads the next tokens (B, U) and gives the logits (B, V)
        of the one after. The first call may read none."""
        ...
