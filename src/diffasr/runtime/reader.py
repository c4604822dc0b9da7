"""Texts in, what the decoder would write at each of their places out; of a text that begins like the one before only
what differs is read.

Where a decoder does not see later places, what it says of a place depends on those before it alone. So keys and values
of what was read are kept, and a text that is rewritten from some place on is read from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnxruntime

from diffasr.decodable import Floats
from diffasr.places import Place
from diffasr.runtime.weights import Weights

AT_ONCE = 16
"""Places whose logits are made together: all of them would be large."""
_HIDDEN = np.float32(-1e30)
"""Added to the score of a place that is not to be seen."""


@dataclass
class Row:
    """One text, and what it is of."""

    speech: dict[str, Floats]
    past: dict[str, Floats] = field(default_factory=dict)
    """Keys and values (P, D) of what was read, by their names in the decoder's graph."""
    seen: list[int] = field(default_factory=list)
    hidden: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(P, D)."""

    def left(self, size: int) -> "Row":
        """Another, of the first ``size`` places."""
        past = {name: part[:size] for name, part in self.past.items()}
        return Row(self.speech, past, self.seen[:size], self.hidden[:size])


def silent(speech: dict[str, Floats]) -> dict[str, Floats]:
    """Keys and values without the sound: one frame to attend to, which says nothing."""
    return {name: np.zeros_like(part[:, :, :1]) for name, part in speech.items()}


class Decoder:
    """The graphs that read, and what they need beside them."""

    def __init__(
        self,
        decoder: onnxruntime.InferenceSession,
        head: onnxruntime.InferenceSession,
        vocabulary: Callable[[], onnxruntime.InferenceSession],
        weights: Weights,
    ) -> None:
        """vocabulary: makes the graph of all logits, which is needed by few."""
        self._make_all = vocabulary
        self._all: onnxruntime.InferenceSession | None = None
        self._decoder, self._head = decoder, head
        self._names = [out.name for out in decoder.get_outputs()]
        self._table = weights.view("decoder.embed_tokens.weight")  # (V, D), read row by row out of the file
        name = "decoder.embed_tokens.weight.scale"
        self._scale = weights.floats(name) if name in weights else np.ones(len(self._table), np.float32)
        self._places = weights.floats("decoder.embed_positions.weight")
        self.vocabulary, self.size = len(self._table), len(self._places)

    def embedded(self, tokens: Sequence[int]) -> Floats:
        """(n, D) of tokens, without their places."""
        chosen = np.asarray(tokens, np.int64)
        found: Floats = self._table[chosen].astype(np.float32) * self._scale[chosen, None]
        return found

    def read(self, row: Row, tokens: Sequence[int]) -> int:
        """Read what is new in ``tokens``; returns how many places were known."""
        known = _alike(row.seen, tokens)
        new = list(tokens[known:])
        if new:
            before = {name: part[:known] for name, part in row.past.items()} or self._nothing()
            hidden, row.past = self._run(new, known, before, row.speech)
            row.hidden = np.concatenate((row.hidden[:known], hidden)) if known else hidden
        else:
            row.past = {name: part[:known] for name, part in row.past.items()}
            row.hidden = row.hidden[:known]
        row.seen = list(tokens)
        return known

    def _run(
        self, tokens: Sequence[int], place: int, past: dict[str, Floats], speech: dict[str, Floats]
    ) -> tuple[Floats, dict[str, Floats]]:
        """Hidden states (n, D) of tokens from ``place`` on, and the past behind them."""
        size, before = len(tokens), len(next(iter(past.values())))
        sight = np.triu(np.full((size, before + size), _HIDDEN), before + 1)[None, None]
        x = self.embedded(tokens) + self._places[place : place + size]
        feeds = {"x": x, "sight": sight} | past | speech
        found = dict(zip(self._names, self._decoder.run(self._names, feeds), strict=True))
        grown = {name: np.concatenate((part, found[name.replace("past", "new")])) for name, part in past.items()}
        return found["hidden"], grown

    def _nothing(self) -> dict[str, Floats]:
        empty = np.zeros((0, self._table.shape[1]), np.float32)
        return {name.replace("new", "past"): empty for name in self._names if name.startswith("new")}

    def said(self, hidden: Sequence[Floats], weights: Sequence[float]) -> list[Place]:
        """What is said at n places by readings (n, D), each with its weight."""
        places = list[Place]()
        mixed = np.einsum("m,mnd->nd", np.asarray(weights, np.float32), np.stack(hidden))  # logits are linear in it
        for start in range(0, len(mixed), AT_ONCE):
            states = mixed[start : start + AT_ONCE]
            scores, tokens, total = self._head.run(["scores", "tokens", "total"], {"hidden": states})
            named = zip(tokens.tolist(), scores.tolist(), states, total[:, 0].tolist(), strict=True)
            places += [Place(likely, sure, partial(self._of, *state)) for likely, sure, *state in named]
        return places

    def scores(self, hidden: Floats) -> Floats:
        """(n, D) to all logits (n, V)."""
        self._all = self._all or self._make_all()
        found: Floats = self._all.run(["logits"], {"hidden": hidden})[0]
        return found

    def _of(self, state: Floats, total: float, token: int) -> float:
        """Log-probability of any token."""
        return float(self._table[token].astype(np.float32) @ state * self._scale[token] - total)


class Reader:
    """Reads texts of the rows of a batch, step after step."""

    def __init__(
        self,
        decoder: Decoder,
        prefixes: Sequence[Sequence[int]],
        speech: Sequence[dict[str, Floats]],
        guidance: Sequence[float],
    ) -> None:
        """prefixes: clean tokens before each text. guidance: of each row how far what it says is pushed away from what
        it would say without the sound."""
        self._decoder, self._prefixes = decoder, prefixes
        pairs = zip(speech, guidance, strict=True)
        self._rows = [[Row(s), Row(silent(s))] if weight > 0 else [Row(s)] for s, weight in pairs]
        self._weights = [[1 + weight, -weight] if weight > 0 else [1.0] for weight in guidance]
        self._told: list[list[Place]] = [[] for _ in speech]
        self._branches: dict[int, list[Row]] = {}
        """By row the readings of a text that left its own behind some place."""

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        """See ``places.Reader``."""
        return [self._read(number, text) for number, text in texts]

    def _read(self, number: int, text: Sequence[int]) -> list[Place]:
        prefix, rows = self._prefixes[number], self._rows[number]
        whole = [*prefix, *text]
        known, *_ = [self._decoder.read(row, whole) for row in rows]
        first = max(known, len(prefix) - 1)  # of the prefix only the last place speaks
        kept = self._told[number][: first - len(prefix) + 1]
        new = self._decoder.said([row.hidden[first:] for row in rows], self._weights[number])
        self._told[number] = kept + new
        self._branches.pop(number, None)
        return self._told[number]

    def next(self, number: int, text: Sequence[int]) -> Place:
        """What is said behind a row's text."""
        return self._read(number, text)[-1]

    looks_ahead = True
    """See ``places.Reader``."""

    def ahead(self, number: int, place: int, tokens: Sequence[int]) -> Place:
        """See ``places.Reader``. The branch that was read last is gone on with where it can be."""
        rows, start = self._rows[number], len(self._prefixes[number]) + place
        wanted = [*rows[0].seen[:start], *tokens]
        if number not in self._branches or self._branches[number][0].seen != wanted[:-1]:
            self._branches[number] = [row.left(start) for row in rows]
        branch = self._branches[number]
        for size in range(len(branch[0].seen) + 1, len(wanted) + 1):  # one by one: the same whoever asked before
            for row in branch:
                self._decoder.read(row, wanted[:size])
        return self._decoder.said([row.hidden[-1:] for row in branch], self._weights[number])[0]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
