"""One step of a canvas that CTC and the denoiser write together.

The denoiser says what it would write at each place, given what stands before it; CTC says how likely each text is for
the sound. Going from left to right, each place gets the token that both together find likeliest (the weighted sum of
their log-probabilities, arXiv:1609.06773 equation 8, there for one token after another). Where that changes the text,
CTC also says where the rest of it goes on: behind the same place, one place later, or further.

The first change of a step is right given all before it. Those behind it were asked for before that change was known, so
they are made only where the model is sure, some places away from the change before, and where CTC does not object. The
next step looks at everything again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffasr.diffusion.lattice import Sound, both_ways
from diffasr.text import Spelling

CALM = 1
"""Places behind a change that are left as they are for a step."""
GUARD = 5.0
"""Nats that the whole text may lose with CTC for a change that is not the first."""
REACH = 8
"""Places among which the rest of the text may go on."""
FEW = 16
"""Tokens that are weighed at a place, beside the one that stands there."""
GROWTH = 40
"""Places that a text may become longer by in a step."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What the denoiser says of one place."""

    own: float
    """Log-probability of the token that stands there."""
    tokens: Sequence[int]
    """The likeliest, in falling order."""
    log_probabilities: Sequence[float]
    """Of ``tokens``."""


class Joint:
    """The text of one canvas, step by step."""

    def __init__(self, sound: Sound, spelling: Spelling, *, end: int, weight: float, confidence: float) -> None:
        """weight: of CTC beside 1 for the denoiser. confidence: probability that a change needs behind the first."""
        self.spelling, self.end = spelling, end
        self.weight, self.confidence = weight, confidence
        self.forwards, self.backwards = both_ways(sound, spelling)

    def rewritten(self, canvas: Tensor, logits: Tensor) -> Tensor:
        """The canvas (L,) after one step, from the denoiser's logits (L, V); behind its text it is ``end``."""
        tokens: list[int] = canvas.tolist()
        tokens = tokens[: tokens.index(self.end)] if self.end in tokens else tokens
        out = torch.full_like(canvas, self.end)
        new = self.step(tokens, opinions(logits, [*tokens, self.end]))[: len(canvas)]
        out[: len(new)] = torch.tensor(new, dtype=out.dtype)
        return out

    def step(self, tokens: Sequence[int], opinions: Sequence[Opinion]) -> list[int]:
        """The text after one step: the same where nothing is to be changed.

        tokens: (U,) without the end. opinions: (U + 1) of each place and of the one behind the last.
        """
        names = self.spelling.names
        written, text = list[int](), ""
        place = calm = changes = 0
        while place <= len(tokens) and len(written) < len(tokens) + GROWTH:
            is_last = place == len(tokens)
            own = self.end if is_last else tokens[place]
            chosen, resumed = own, place + 1
            if is_last or not calm:
                chosen = self._best(text, own, opinions[place], is_first=not changes)
            calm = max(0, calm - 1)
            if chosen != own:
                found = self._resumed(text, chosen, tokens, place, is_first=not changes)
                if found is None:  # CTC objects
                    chosen = own
                else:
                    resumed, changes, calm = found, changes + 1, CALM
            if chosen == self.end:
                break
            written.append(chosen)
            text, place = text + names[chosen], resumed
        return written

    def next(self, tokens: Sequence[int], opinion: Opinion) -> int:
        """The token behind ``tokens``, of those of ``opinion``: one place alone."""
        text = "".join(self.spelling.names[token] for token in tokens)
        likeliest = replace(opinion, own=opinion.log_probabilities[0])
        return self._best(text, opinion.tokens[0], likeliest, is_first=True)

    def _best(self, text: str, own: int, opinion: Opinion, *, is_first: bool) -> int:
        """The token that both find likeliest behind ``text``."""
        least = -math.inf if is_first else math.log(max(self.confidence, 1e-9))
        begun = self.forwards.begins(text)
        best, most = own, opinion.own + self.weight * (self._heard(text, own) - begun)
        for token, score in zip(opinion.tokens, opinion.log_probabilities, strict=True):
            if score < most or score < least:  # CTC can only take away
                break
            if token != own:
                together = score + self.weight * (self._heard(text, token) - begun)
                best, most = (token, together) if together > most else (best, most)
        return best

    def _heard(self, text: str, token: int) -> float:
        return (
            self.forwards.whole(text) if token == self.end else self.forwards.begins(text + self.spelling.names[token])
        )

    def _resumed(self, text: str, token: int, tokens: Sequence[int], place: int, *, is_first: bool) -> int | None:
        """The place of ``tokens`` that goes on behind ``text`` and ``token``; None where CTC objects to the token."""
        names, after = self.spelling.names, [""]
        for other in tokens[place:][::-1]:
            after.append(names[other] + after[-1])
        after.reverse()  # from each place on
        if token == self.end:
            where, likely = len(tokens), self.forwards.whole(text)
        else:
            longer = text + names[token]
            scores = [self.forwards.joined(longer, rest, self.backwards) for rest in after[:REACH]]
            likely = max(scores)
            where = place + scores.index(likely)
        if is_first or likely >= self.forwards.joined(text, after[0], self.backwards) - GUARD:
            return where
        return None


def opinions(logits: Tensor, tokens: Sequence[int]) -> list[Opinion]:
    """What (L, V) logits say of each of ``tokens``; where a full canvas has no place for the last, the end is sure."""
    places = logits[: len(tokens)].float()
    total = places.logsumexp(-1, keepdim=True)
    top = places.topk(min(FEW, places.shape[1]), dim=-1)
    own = places.gather(1, torch.tensor(tokens[: len(places)], device=places.device)[:, None]) - total
    found = [
        Opinion(own=score, tokens=likely, log_probabilities=scores)
        for score, likely, scores in zip(
            own[:, 0].tolist(), top.indices.tolist(), (top.values - total).tolist(), strict=True
        )
    ]
    return found + [Opinion(own=0.0, tokens=(), log_probabilities=())] * (len(tokens) - len(places))
