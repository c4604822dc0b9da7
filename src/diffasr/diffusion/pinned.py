"""A canvas of which some tokens are known: what the sampler makes of the others in, the next canvas out.

Known tokens are pinned in their order, not to their places: the text between two of them grows and shrinks. So that it
does not say twice what the known tokens say, or leave out what was said, each change is weighed against CTC: what the
whole text has of its posterior with the change and without. Where CTC has short labels, CTC and the denoiser write the
free tokens together (``joint``), many in a step; elsewhere one change is made in a step.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.joint import Joint, Known
from diffasr.diffusion.sampler import Step, closed
from diffasr.diffusion.together import Writer
from diffasr.errors import OptionError
from diffasr.places import Place
from diffasr.text import SPACES, Tokenizer

WEIGHT = 0.5
"""What a nat of CTC counts for beside one of the denoiser."""
_PATIENCE = 16  # changes of one place that are weighed before it stays as it is
_NEVER = -1e4  # nats; finite, for the sampler multiplies by it


@dataclass(frozen=True)
class Piece:
    """Tokens of a text: known ones, or those between two known pieces."""

    tokens: tuple[int, ...]
    is_kept: bool


Judge = Callable[[str], float]
"""A text to CTC's log-probability of it, in nats."""


class Sheet:
    """The canvas of one window and what is known of it, for ``sampler.sample``.

    ``narrowed`` and ``renew`` are for the prefix rule, ``together`` is for the joint one.
    """

    def __init__(self, pieces: Sequence[Piece], tokenizer: Tokenizer, judge: Judge, *, is_spaced: bool) -> None:
        """pieces: free and kept ones in turn, free ones at both ends. is_spaced: words are written with spaces, and no
        letter may follow a kept piece directly. Raises OptionError for a text that no canvas holds."""
        self.pieces = list(pieces)
        self._tokenizer = tokenizer
        self._judge = judge
        count = len(self.tokens())
        if count >= ctc.BUCKETS[-1]:
            raise OptionError(f"the text has {count} tokens: a canvas holds {ctc.BUCKETS[-1] - 1}, so fix fewer words")
        self.size = ctc.canvas_length(count)
        spelled = [tokenizer.backend.id_to_token(i) or "" for i in range(tokenizer.size)] if is_spaced else []
        goes_on = [i for i, s in enumerate(spelled) if not s.startswith(tuple(SPACES)) and i != tokenizer.end]
        self._goes_on = torch.tensor(goes_on, dtype=torch.long)

    def tokens(self) -> list[int]:
        """The text as it stands, without an end."""
        return [token for piece in self.pieces for token in piece.tokens]

    def kept(self) -> list[bool]:
        """Which of them are known."""
        return [piece.is_kept for piece in self.pieces for _ in piece.tokens]

    def canvas(self) -> Tensor:
        """The same (1, size), the rest of it end tokens."""
        canvas = torch.full((1, self.size), self._tokenizer.end)
        tokens = torch.tensor(self.tokens(), dtype=torch.long)
        canvas[0, : len(tokens)] = tokens
        return canvas

    def _starts(self) -> list[int]:
        """The place where each piece begins, and the one behind all."""
        return [0, *accumulate(len(piece.tokens) for piece in self.pieces)]

    def narrowed(self, logits: Tensor) -> Tensor:
        """(1, size, V) logits of the present canvas with no choice but to leave what is kept as it is."""
        out, starts = logits.clone(), self._starts()
        kept = [(a, b) for a, b, piece in zip(starts, starts[1:], self.pieces, strict=False) if piece.is_kept]
        for _, behind in kept:
            out[0, : kept[-1][1], self._tokenizer.end] = _NEVER
            if behind < self.size:
                out[0, behind, self._goes_on] = _NEVER
        known = torch.tensor(self.tokens(), dtype=torch.long)
        for first, behind in kept:
            out[0, first:behind] = _NEVER
            out[0, torch.arange(first, behind), known[first:behind]] = 0.0
        self._refuse_(out)
        return out

    def _refuse_(self, logits: Tensor) -> None:
        """Take the first change that ``logits`` make away, until it is one that CTC can agree to, or there is none."""
        old, heard = self.canvas(), self._heard(self.pieces)
        refused: Counter[int] = Counter()
        while True:
            new = closed(logits.argmax(-1), self._tokenizer.end)
            changes = (new != old)[0].nonzero()[:, 0].tolist()
            if not changes:
                return
            place = changes[0]
            token = int(new[0, place])
            better = self._heard(self._changed(place, token)) - heard
            odds = float(logits[0, place, token] - logits[0, place, old[0, place]])
            if odds + WEIGHT * better >= 0:
                return
            logits[0, place, token] = _NEVER
            refused[place] += 1
            if refused[place] == _PATIENCE:
                logits[0, place, old[0, place]] = logits[0, place].max() + 1e-3

    def renew(self, step: Step) -> Tensor:
        """Take over the last of the accepted places (1, size), where it is a change; the new canvas."""
        old, place = self.canvas(), int(step.accepted.sum()) - 1
        new = int(closed(step.drawn, self._tokenizer.end)[0, place])
        if new != int(old[0, place]):
            self.pieces = self._changed(place, new)
        return self.canvas()

    def together(self, joint: Joint) -> Writer:
        """What writes the free tokens anew in each step, together with CTC; without room for the text nothing does."""
        known_end, not_behind = self._tokenizer.end, frozenset(self._goes_on.tolist())

        def renew(tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
            told = [place.opinion(token) for place, token in zip(places, [*tokens, known_end], strict=True)]
            written = joint.written(tokens, told, Known(kept=self.kept(), not_behind=not_behind))
            if len(written) < self.size:
                runs = [(is_kept, list(run)) for is_kept, run in groupby(written, key=itemgetter(1))]
                self.pieces = [Piece(tuple(token for token, _ in run), is_kept) for is_kept, run in runs]
            return self.tokens()

        return Writer(renew)

    def _changed(self, place: int, new: int) -> list[Piece]:
        """The pieces with a token put at a place of a free one.

        The piece goes on with what of it is not used up by then; or it ends here, where what was written last begins
        the kept piece behind it and CTC finds that likelier.
        """
        spell, starts = self._tokenizer.spell, self._starts()
        last = len(self.pieces) - 1
        number = next(n for n in range(last + 1) if place < starts[n + 1] or n == last)
        mine, at = list(self.pieces[number].tokens), place - starts[number]
        if new == self._tokenizer.end:  # behind the last kept piece: narrowed() has no other end
            return [*self.pieces[:number], Piece(tuple(mine[:at]), False)]
        written = [*mine[:at], new]
        used = ctc.consumed(spell(written), [spell([token]) for token in mine])
        room = self.size - 1 - (starts[-1] - len(mine))
        rest = mine[used:] if len(written) + len(mine) - used <= room else mine[at + 1 :]
        ways = [written + rest]
        following = self.pieces[number + 1].tokens if number < last else ()
        for size in range(1, min(len(written), len(following)) + 1):
            if tuple(written[-size:]) == following[:size]:
                ways.insert(0, written[:-size])
        texts = [[*self.pieces[:number], Piece(tuple(way[:room]), False), *self.pieces[number + 1 :]] for way in ways]
        return max(texts, key=self._heard)

    def _heard(self, pieces: Sequence[Piece]) -> float:
        """What CTC gives the text."""
        return self._judge(self._tokenizer.decode(token for piece in pieces for token in piece.tokens))

    def kept_words(self, language: str) -> list[int]:
        """The numbers of the words that are kept, among those of the text."""
        tokens, starts = self.tokens(), self._starts()
        found: list[int] = []
        for first, behind, piece in zip(starts, starts[1:], self.pieces, strict=False):
            if piece.is_kept:
                before, through = (self._tokenizer.decode(tokens[:n]) for n in (first, behind))
                counts = [len(self._tokenizer.words(text, language)) for text in (before, through)]
                found += range(*counts)
        return found
