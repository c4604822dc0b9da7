"""What a network says of the places of a text: all that those who write it know of the network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

FEW = 16
"""Tokens that are named at a place, and weighed beside the one that stands there."""
_NEVER = -20.0  # nats, for all but the end behind a text: what is written there has not been read, and counts so


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What the denoiser says of one place."""

    own: float
    """Log-probability of the token that stands there."""
    tokens: Sequence[int]
    """The likeliest, in falling order."""
    log_probabilities: Sequence[float]
    """Of ``tokens``."""

    def of(self, token: int) -> float:
        """Log-probability of one of ``tokens``."""
        return self.log_probabilities[self.tokens.index(token)]


@dataclass(frozen=True, slots=True)
class Place:
    """What the denoiser says of one place, whatever stands there."""

    tokens: Sequence[int]
    """The likeliest, in falling order."""
    log_probabilities: Sequence[float]
    """Of ``tokens``."""
    rest: Callable[[int], float]
    """Log-probability of any other token."""

    def of(self, token: int) -> float:
        """Log-probability of a token."""
        return self.log_probabilities[self.tokens.index(token)] if token in self.tokens else self.rest(token)

    def opinion(self, own: int) -> Opinion:
        """The same where ``own`` stands there."""
        return Opinion(own=self.of(own), tokens=self.tokens, log_probabilities=self.log_probabilities)

    def raised(self, token: int, nats: float) -> "Place":
        """The same had the logit of a token been so much higher."""
        before = self.of(token)
        others = math.log(-math.expm1(min(before, -1e-12)))  # the logarithm of what all others have together
        own = -math.log1p(math.exp(min(others - before - nats, 700.0)))
        less = before + nats - own  # that all others lose
        pairs = [(t, p - less) for t, p in zip(self.tokens, self.log_probabilities, strict=True) if t != token]
        pairs = sorted([*pairs, (token, own)], key=lambda pair: -pair[1])
        rest = self.rest
        return Place([t for t, _ in pairs], [p for _, p in pairs], lambda other: rest(other) - less)


def unread(end: int) -> Place:
    """Of a place behind the end of a text, which nobody reads: the end is sure."""
    return Place((end,), (0.0,), lambda _: _NEVER)


class Reader(Protocol):
    """What says of texts what it would write at each of their places."""

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        """Texts (U,) without the end, each with the number of its row, to U + 1 places each."""
        ...

    @property
    def looks_ahead(self) -> bool:
        """Whether ``ahead`` can be asked: where a place costs far less than a text."""
        ...

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        """What would be written behind the first ``place`` tokens of the text that a row read last, and ``tokens``, at
        least one, which follow there instead of the text's own."""
        ...
