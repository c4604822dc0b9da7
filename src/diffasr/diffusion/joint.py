"""One step of a canvas that CTC and the denoiser write together.

The denoiser says what it would write at each place, given what stands before it; CTC says how likely each text is for
the sound. Going from left to right, each place gets the token that both together find likeliest (the weighted sum of
their log-probabilities, arXiv:1609.06773 equation 8, there for one token after another). Where that changes the text,
CTC also says where the rest of it goes on: behind the same place, one place later, or further.

Tokens that the denoiser finds far less likely than its best are not weighed: where it is sure, CTC is not asked. Where
it knows a language badly, each change needs consent (``caution``): what it gains with the denoiser, and what the whole
text gains or loses with CTC.

The first change of a step is right given all before it. Those behind it were asked for before that change was known, so
they are made only where the model is sure, some places away from the change before, and where CTC does not object.
Where a place can be asked about by itself, what follows right behind a change is asked at once, token by token, until
it is what stands there; of what changed further to the left in the same step these questions know nothing. The next
step looks at everything again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from diffasr.diffusion.fluency import Fluency, Fluent
from diffasr.diffusion.lattice import Lattice, Sound, both_ways
from diffasr.places import Opinion, Place
from diffasr.text import Spelling

CALM = 1
"""Places behind a change that are left as they are for a step."""
GUARD, AHEAD_GUARD = 5.0, 12.0
"""Nats that the whole text may lose with CTC for a change that is not the first; and where what follows is asked at
once, for CTC then sees no more than the half of a word that is being changed."""
REACH = 8
"""Places among which the rest of the text may go on."""
FAR = 2.5
"""Nats below the denoiser's best token from which on one is not weighed, the one that stands there included."""
GROWTH = 40
"""Places that a text may become longer by in a step."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a text, and stays."""

    kept: Sequence[bool]
    """(U,) which tokens."""
    not_behind: frozenset[int]
    """Tokens that may not follow a kept one directly."""

    def keeps(self, place: int) -> bool:
        """Whether a token is kept; the end is not."""
        return place < len(self.kept) and self.kept[place]

    def next(self, place: int) -> int:
        """The first kept place from ``place`` on, or that of the end."""
        return next((n for n in range(place, len(self.kept)) if self.kept[n]), len(self.kept))


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is said of places right behind a change, when they are asked about."""

    most: int
    """Tokens behind which that is done, at most."""
    told: Callable[[int, Sequence[int], int], Opinion]
    """Of the place behind the first so many tokens of the text and some new ones; the last: the place where the text
    may go on, whose token then stands there."""


@dataclass
class _Page:
    """A text while it is written anew."""

    done: list[tuple[int, bool]] = field(default_factory=list)
    """Its tokens, and which are kept ones."""
    text: str = ""
    place: int = 0
    """Of the text before, that which is next."""
    changes: int = 0
    calm: int = 0
    """Places that are left as they are."""
    begun: int = 0
    """Where changes without a pause began, the last time."""
    run: tuple[int, ...] = ()
    """What was written there, if it goes on up to here."""

    def write(self, token: int, name: str, found: int, *, is_kept: bool, is_new: bool) -> None:
        """Go on with a token, and ``found`` places further in the text before; a new one is a change."""
        if is_new:
            self.begun = self.begun if self.run else self.place
            self.changes, self.calm = self.changes + 1, CALM
        self.run = (*self.run, token) if is_new else ()
        self.done.append((token, is_kept))
        self.text, self.place = self.text + name, self.place + found

    def back_to(self, done: list[tuple[int, bool]], place: int, text: str) -> None:
        """Take back what was written twice, and go on at ``place``."""
        self.done, self.place, self.text, self.run = done, place, text, ()
        self.changes, self.calm = self.changes + 1, CALM


class Joint:
    """The text of one canvas, step by step."""

    def __init__(  # noqa: PLR0913
        self,
        sound: Sound,
        spelling: Spelling,
        *,
        end: int,
        weight: float,
        confidence: float,
        caution: float = 0.0,
        fluency: Fluency | None = None,
    ) -> None:
        """weight: of CTC beside 1 for the denoiser. confidence: probability that a change needs behind the first.
        caution: of CTC beside 1 for the denoiser when a change asks for consent; 0: the first of a step needs none.
        fluency: counts with CTC, where there is one."""
        self.spelling, self.end = spelling, end
        self.weight, self.confidence, self.caution = weight, confidence, caution
        heard, self.backwards = both_ways(sound, spelling)
        self.forwards: Lattice | Fluent = heard if fluency is None else Fluent(heard, fluency)

    def rewritten(self, tokens: Sequence[int], places: Sequence[Place], ahead: Ahead | None = None) -> list[int]:
        """The text after one step: the same where nothing is to be changed.

        tokens: (U,) without the end. places: (U + 1,) that behind the last token included.
        """
        told = [place.opinion(token) for place, token in zip(places, [*tokens, self.end], strict=True)]
        return self.step(tokens, told, ahead)

    def step(self, tokens: Sequence[int], opinions: Sequence[Opinion], ahead: Ahead | None = None) -> list[int]:
        """The same from what is said of each place and of the one behind the last: (U + 1,)."""
        return [token for token, _ in self.written(tokens, opinions, ahead=ahead)]

    def written(
        self,
        tokens: Sequence[int],
        opinions: Sequence[Opinion],
        known: Known | None = None,
        ahead: Ahead | None = None,
    ) -> list[tuple[int, bool]]:
        """The same with what is ``known`` of it: each token, and whether it is a kept one.

        Text before a kept token never goes on behind it. The first change, which was right given all before it, is then
        weighed against what CTC says of the whole, for what is kept behind it can speak against it.
        """
        names, after = self.spelling.names, self._rests(tokens)
        page = _Page()
        while page.place <= len(tokens) and len(page.done) < len(tokens) + GROWTH:
            place = page.place
            own = self.end if place == len(tokens) else tokens[place]
            is_kept = known is not None and known.keeps(place)
            stop = len(tokens) if known is None else known.next(place)
            told = None if is_kept else self._told(page, own, opinions, ahead)
            if told is not None and known is not None:
                told = self._allowed(told, page.done, known, stop)
            chosen, found = own, 1
            if told is not None:
                chosen = self._best(page.text, own, told, is_first=not page.changes)
            if told is not None and chosen != own:
                guard = GUARD if ahead is None else AHEAD_GUARD
                consent = self._consent(told, chosen, guard, is_known=known is not None, is_first=not page.changes)
                resumed = self._resumed(page.text, chosen, after[place : stop + 1], consent)
                chosen, found = (own, 1) if resumed is None else (chosen, resumed)  # None: CTC objects
            page.calm = max(0, page.calm - 1)
            if chosen == self.end:
                break
            if chosen != own and known is not None:
                new = [*page.done, (chosen, False)]
                shorter = self._undoubled(new, tokens[stop:], after[stop], after[place + found])
                if shorter is not None:  # it is the kept text itself that was meant
                    page.back_to(shorter, stop, "".join(names[token] for token, _ in shorter))
                    continue
            page.write(chosen, names[chosen], found, is_kept=is_kept, is_new=chosen != own)
        return page.done

    def worth(self, tokens: Sequence[int], places: Sequence[Place]) -> float:
        """What both find of a text that was read, (U,) tokens and (U + 1,) places: the sum that its steps look for."""
        said = sum(place.of(token) for place, token in zip(places, [*tokens, self.end], strict=True))
        return said + self.weight * self.forwards.whole("".join(self.spelling.names[token] for token in tokens))

    def next(self, tokens: Sequence[int], place: Place) -> int:
        """The token behind ``tokens``, of those that are likeliest there: one place alone."""
        text = "".join(self.spelling.names[token] for token in tokens)
        return self._best(text, place.tokens[0], place.opinion(place.tokens[0]), is_first=True)

    def _told(self, page: _Page, own: int, opinions: Sequence[Opinion], ahead: Ahead | None) -> Opinion | None:
        """What is said of the place that is next: behind a change it is asked, a little further there is nothing."""
        if ahead is not None and 0 < len(page.run) <= ahead.most:
            return ahead.told(page.begun, page.run, page.place)
        return None if page.calm and own != self.end else opinions[page.place]

    def _best(self, text: str, own: int, opinion: Opinion, *, is_first: bool) -> int:
        """The token that both find likeliest behind ``text``."""
        least = -math.inf if is_first else math.log(max(self.confidence, 1e-9))
        begun = self.forwards.begins(text)
        far = opinion.log_probabilities[0] - FAR if opinion.log_probabilities else -math.inf
        best, most = own, -math.inf
        if opinion.own >= far:
            most = opinion.own + self.weight * (self._heard(text, own) - begun)
        for token, score in zip(opinion.tokens, opinion.log_probabilities, strict=True):
            if score < max(least, far):
                break
            if token != own:
                together = score + self.weight * (self._heard(text, token) - begun)
                best, most = (token, together) if together > most else (best, most)
        return best

    def _heard(self, text: str, token: int) -> float:
        return (
            self.forwards.whole(text) if token == self.end else self.forwards.begins(text + self.spelling.names[token])
        )

    def _rests(self, tokens: Sequence[int]) -> list[str]:
        """The text from each place on, and the empty one behind the last."""
        after = [""]
        for token in tokens[::-1]:
            after.append(self.spelling.names[token] + after[-1])
        return after[::-1]

    def _consent(
        self, told: Opinion, token: int, guard: float, *, is_known: bool, is_first: bool
    ) -> tuple[float, float]:
        """What must be at least 0 for a change to be made: the first number, and CTC's gain times the second."""
        gain = told.of(token) - told.own
        if self.caution > 0:
            return gain, self.caution
        if not is_first:
            return guard, 1.0
        return (gain, self.weight) if is_known else (0.0, 0.0)

    def _resumed(self, text: str, token: int, after: Sequence[str], consent: tuple[float, float]) -> int | None:
        """How many places further the text goes on behind ``text`` and ``token``; None where CTC objects to the token.

        after: the text from the present place on, and from each one at which it may go on. consent: see ``_consent``.
        """
        if token == self.end:
            where, likely = len(after) - 1, self.forwards.whole(text)
        else:
            longer = text + self.spelling.names[token]
            scores = [self.forwards.joined(longer, rest, self.backwards) for rest in after[:REACH]]
            likely = max(scores)
            where = scores.index(likely)
        own, weight = consent
        if weight == 0:
            return where
        better = likely - self.forwards.joined(text, after[0], self.backwards)
        return where if own + weight * better >= 0 else None

    def _undoubled(
        self, done: list[tuple[int, bool]], kept: Sequence[int], behind: str, rest: str
    ) -> list[tuple[int, bool]] | None:
        """What is ``done`` without its end, where that begins what is ``kept`` next and CTC does not hear it twice.

        behind: the text from the kept one on; rest: that with which what is done would go on.
        """
        text, joined = "".join(self.spelling.names[token] for token, _ in done), self.forwards.joined
        for size in range(min(len(done), len(kept)), 0, -1):
            if done[-size:] != [(token, False) for token in kept[:size]]:
                continue
            shorter = text[: len(text) - sum(len(self.spelling.names[token]) for token in kept[:size])]
            if joined(shorter, behind, self.backwards) >= joined(text, rest, self.backwards):
                return done[:-size]
        return None

    def _allowed(self, opinion: Opinion, done: Sequence[tuple[int, bool]], known: Known, stop: int) -> Opinion:
        """An opinion without tokens that can't stand behind what is ``done`` or before the kept one at ``stop``."""
        barred = {self.end} if stop < len(known.kept) else set[int]()
        if done and done[-1][1]:
            barred |= known.not_behind
        pairs = [(t, p) for t, p in zip(opinion.tokens, opinion.log_probabilities, strict=True) if t not in barred]
        return replace(opinion, tokens=[t for t, _ in pairs], log_probabilities=[p for _, p in pairs])
