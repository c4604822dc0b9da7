"""From noise to text: a canvas is denoised a few times, and each draft is handed out as it comes.

At every step the surest places are accepted and the rest is drawn anew from noise. The entropy bound accepts the k
surest places while their entropies, less the largest, stay under a bound: arXiv:2505.24857 section 3. A threshold
accepts every place that is likelier than a fixed number.

A row that is finished leaves the batch: the denoiser is not asked about it again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.corrupt import noise
from diffasr.errors import OptionError

FEW, MANY = 8, 4096
"""Places whose logits are looked at together: on a CPU, and on a GPU, which is quick if it is seldom asked."""
MOST_DRAFTED = 8
"""Tokens that a drafter, who learned to write two, can be asked to go on for."""
FEW_STEPS = 4
"""So many steps make a drafter worth its price."""
WORTHWHILE = 0.25
"""Share of the rows in hand that must be finished before they leave: what a network remembers of the others is copied
then, which costs them a part of a step."""
Beliefs = tuple[Tensor, Tensor, Tensor]
"""See ``beliefs``."""
Denoise = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""Canvas (R, L), the step before's logits (R, L, V) or None, and which rows of the batch these are (R,), to logits
(R, L, V)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step found out."""

    rows: Tensor
    """(R,) which rows of the batch."""
    canvas: Tensor
    """(R, L) what the denoiser saw."""
    logits: Tensor
    """(R, L, V) what it said, where it said it: on a GPU, maybe."""
    total: Tensor
    """(R, L) the logarithm of the sum of their exponentials."""
    drawn: Tensor
    """(R, L) a token for each place."""
    accepted: Tensor
    """(R, L) bool: which of them stay."""


Believe = Callable[[Tensor], Beliefs]
"""Logits (R, L, V), those that were just told, to what is believed by them."""
Renew = Callable[[Step], Tensor]
"""What takes the place of all that was not accepted: (R, L) tokens."""


_CHOICES = {
    "start": ("ctc", "sample", "noise"),
    "accept": ("auto", "joint", "prefix", "entropy", "threshold", "all"),
    "merge": ("rover", "mbr"),
}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a transcript is drawn."""

    steps: int = 8
    """Model calls a window, at most."""
    start: Literal["ctc", "sample", "noise"] = "ctc"
    """What the canvas starts from: CTC's likeliest text, a sample of what CTC may have heard, or random tokens."""
    seed_noise: float = 0.0
    """Share of the CTC canvas that is replaced by random tokens before the first step."""
    temperature: float = 0.0
    """Of the first step. 0 takes the most likely token, as ``joint`` always does."""
    final_temperature: float = 0.0
    """Of the last step; linear in between."""
    entropy_bound: float = 0.1
    """Nats that the accepted places may hold together, the least sure of them not counted."""
    accept: Literal["auto", "joint", "prefix", "entropy", "threshold", "all"] = "auto"
    """``joint``: every place is written anew by CTC and the denoiser together (``diffusion.joint``). ``prefix``: up to
    the first place that the model changed, that one included; what follows is renewed. ``entropy``: the surest places,
    within the bound. ``threshold``: every place whose token is at least so likely, and the likeliest. ``all``: every
    place, as in plain refinement. ``auto``: ``joint`` from CTC's text where CTC has short labels and temperatures and
    ``ctc_weight`` are 0, else ``prefix``."""
    joint_weight: float | None = None
    """With ``joint``: what CTC's log-probability counts for beside the denoiser's. None: as the checkpoint says of the
    language, else 0.43."""
    caution: float | None = None
    """With ``joint``: what CTC counts for beside the denoiser when a change is to be allowed: the more, the fewer. 0:
    the first change of a step is made in any case. None: as the checkpoint says of the language, else 0."""
    beam: int = 12
    """With ``start`` from CTC and a checkpoint that has a model of letters: texts that are kept while the best one is
    looked for, which the canvas then starts from; 0: CTC's best path."""
    letter_weight: float | None = None
    """What the model of letters counts for beside CTC: in the beam, and with ``joint`` in every step. None: as the
    checkpoint says of the language, else 0.3."""
    letter_bonus: float | None = None
    """Nats that CTC is given for each letter, in the same places: alone it leaves letters out. None: as the checkpoint
    says of the language, else 1.2."""
    threshold: float = 0.9
    """Probability from which ``threshold`` accepts a token."""
    position_bias: float = 0.0
    """With ``entropy`` and ``threshold``: nats by which the last place of a canvas counts as less sure than it is, the
    others in proportion to their distance from its start."""
    confidence: float = 0.1
    """With ``joint``: how likely a token must be to change a place behind the first change of a step."""
    draft: int | None = None
    """With ``joint``, on a CPU, where the checkpoint has a drafter: tokens behind which it goes on, in a step, where a
    change was made; 0: it is not asked. None: 2 where there are at most four steps, else 0: with more, the next step
    tells as well and as soon."""
    stop_entropy: float = 0.005
    """A row is done when its text did not change in a step and its mean entropy is under this, in nats; with
    ``prefix`` and ``joint``, when the step changed nothing and is not the first."""
    ctc_weight: float = 0.0
    """How much CTC's logits count beside the denoiser's, at the places that CTC put there. Not with ``joint``, which
    has a weight of its own."""
    guidance: float | None = None
    """How far each step's logits are pushed away from those of a reading without the sound, which then runs beside it:
    w in (1 + w) * with - w * without. None: with ``joint`` as the checkpoint says of the language, else 0."""
    self_conditioning: bool = False
    """Show each step what the step before believed."""
    votes: int = 1
    """Canvases of each window, merged into one text. All but the first start from other noise, or from a sample of what
    CTC may have heard."""
    merge: Literal["rover", "mbr"] = "rover"
    """How: ``rover`` elects each word, ``mbr`` takes the text that differs least from all (minimum Bayes risk)."""
    alternatives: int = 0
    """Texts of the votes that are handed out with each window, at most; not more than ``votes``."""
    seed: int = 0
    """Of the random numbers. Same seed, same transcript."""

    def __post_init__(self) -> None:
        self._check_counts()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(f"{name} can be {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("seed_noise", "threshold", "confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("temperature", "final_temperature", "entropy_bound", "ctc_weight", "stop_entropy",
                     "position_bias", "guidance", "joint_weight", "caution", "letter_weight",
                     "letter_bonus"):  # fmt: skip
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

    def _check_counts(self) -> None:
        for name, least in (("steps", 1), ("votes", 1), ("beam", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.draft is not None and not 0 <= self.draft <= MOST_DRAFTED:
            raise OptionError(f"draft must be from 0 to {MOST_DRAFTED}, got {self.draft}")
        if not 0 <= self.alternatives <= self.votes:
            raise OptionError(
                f"alternatives are texts of the votes: ask for 0 to {self.votes} of them or for more votes, "
                f"got {self.alternatives}"
            )

    @property
    def drafted(self) -> int:
        """``draft``, or what it is where nothing is asked for."""
        return 2 * (self.steps <= FEW_STEPS) if self.draft is None else self.draft

    def temperature_at(self, step: int) -> float:
        """Linear from the first to the last of ``steps``; a single step uses the final one."""
        done = step / (self.steps - 1) if self.steps > 1 else 1.0
        return self.temperature + (self.final_temperature - self.temperature) * done


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The canvas after one step."""

    step: int
    """From 1."""
    tokens: Tensor
    """(B, L) the most likely tokens."""
    entropy: Tensor
    """(B, L) nats."""
    log_probability: Tensor
    """(B, L) of ``tokens``, in nats."""
    accepted: Tensor
    """(B, L) bool: places that the next step sees as they are."""
    finished: Tensor
    """(B,) bool: rows that will not change any more."""


def sample(  # noqa: PLR0913
    denoise: Denoise,
    canvas: Tensor,
    lengths: Tensor,
    options: SamplingOptions,
    *,
    end: int,
    renew: Renew | None = None,
    seeds: Sequence[int] | None = None,
    believe: Believe | None = None,
) -> Iterator[Draft]:
    """Denoise ``canvas`` (B, L), of which each row uses ``lengths``, and yield a draft a step.

    Behind a row's first ``end`` everything is ``end``. What a step does not accept is given to ``renew``; without one
    it is drawn anew from noise. Each row draws from its own generator, so that a row's text does not depend on its
    neighbours; seeds: of each row, None: that of ``options`` for all. believe: what tells ``beliefs`` of the logits,
    where somebody knows a quicker way. A row that is finished keeps its draft and leaves the batch, with others that
    are; when all are, no more steps follow. All of this is on the CPU but the logits, which stay where ``denoise`` made
    them.
    """
    sizes = lengths.tolist()
    dice = [torch.Generator().manual_seed(seed) for seed in seeds or [options.seed] * len(sizes)]
    everything = torch.arange(canvas.shape[1]) < lengths[:, None]  # (B, L)
    rows = torch.arange(len(sizes))  # (R,) those that are still asked for
    previous: Tensor | None = None
    best: Draft | None = None
    for step in range(1, options.steps + 1):
        real, seen = everything[rows], canvas[rows]  # (R, L)
        mine, own = [sizes[row] for row in rows.tolist()], [dice[row] for row in rows.tolist()]
        logits = denoise(seen, previous, rows).float()
        best_tokens, total, entropy = (found.cpu() for found in (believe or beliefs)(logits))  # (R, L) each
        drawn = _draw(logits, best_tokens, options.temperature_at(step - 1), mine, own)
        chosen, surprise = closed(drawn, end), total - _of(logits, drawn)
        accepted = _accepted(options, real, chosen == seen, entropy, surprise)
        if renew is None:
            fresh = fresh_rows(mine, canvas.shape[1], own, vocabulary=logits.shape[2])
        else:
            fresh = renew(Step(rows=rows, canvas=seen, logits=logits, total=total, drawn=drawn, accepted=accepted))
        now = torch.where(accepted, chosen, fresh)
        canvas = canvas.index_copy(0, rows, now)
        tokens, done = closed(best_tokens, end), _is_sure(entropy, real, options.stop_entropy)
        match options.accept:
            case "joint":
                accepted, tokens = (now == seen) & real, now
                done = accepted.eq(real).all(1)
            case "prefix" | "auto":
                tokens, done = torch.where(accepted, tokens, now), accepted.eq(real).all(1)
        score = _of(logits, tokens) - total
        best = _with_finished(Draft(step=step, tokens=tokens, entropy=entropy, log_probability=score,
                                    accepted=accepted, finished=done), best, real, rows)  # fmt: skip
        yield best
        if bool(best.finished.all()):
            return
        stay = _staying(best.finished[rows])
        previous = logits[stay.to(logits.device)] if options.self_conditioning else None
        rows = rows[stay]


def _accepted(options: SamplingOptions, real: Tensor, unchanged: Tensor, entropy: Tensor, surprise: Tensor) -> Tensor:
    """Which places the next step sees as they are: (R, L), of ``real`` ones only.

    unchanged: where the tokens drawn are those that were seen. surprise: minus their log-probability.
    """
    later = options.position_bias * torch.arange(real.shape[1]) / real.sum(1, keepdim=True).sub(1).clamp_min(1)
    match options.accept:
        case "all":
            return real
        case "entropy":
            return within_bound(entropy + later, real, options.entropy_bound)
        case "threshold":
            return likely_enough(surprise + later, real, options.threshold)
        case "joint":
            return torch.zeros_like(real)  # all of it is written by who renews
        case "prefix" | "auto":
            return unchanged_so_far(unchanged) & real


def _staying(finished: Tensor) -> Tensor:
    """Which of the rows in hand (R,) to go on with: all of them until it is worthwhile to part."""
    return ~finished if int(finished.sum()) >= WORTHWHILE * len(finished) else torch.ones_like(finished)


def beliefs(logits: Tensor) -> Beliefs:
    """(B, L, V) logits to the likeliest tokens, the logarithm of the sum of exponentials, and the entropy in nats, all
    (B, L). A few places at a time: what is V wide then stays in the processor's cache."""
    parts = []
    for some in logits.flatten(0, 1).split(FEW if logits.device.type == "cpu" else MANY):  # (FEW, V)
        top, tokens = some.max(-1)
        below = some - top[:, None]
        shares = below.exp()
        total = shares.sum(-1)
        parts.append((tokens, top + total.log(), total.log() - shares.mul_(below).sum(-1) / total))
    tokens, totals, entropies = (torch.cat(column).view(logits.shape[:2]) for column in zip(*parts, strict=True))
    return tokens, totals, entropies


def _of(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(2, tokens.to(logits.device)[..., None])[..., 0].cpu()  # (B, L)


def closed(tokens: Tensor, end: int) -> Tensor:
    """(B, L) tokens with nothing but ``end`` behind each row's first."""
    ends = tokens == end
    return tokens.masked_fill(ends.cumsum(1) > ends.long(), end)


def unchanged_so_far(unchanged: Tensor) -> Tensor:
    """(B, L) bool: all places up to the first that is not ``unchanged``, that one included."""
    changed = (~unchanged).long()
    return changed.cumsum(1) - changed == 0


def _is_sure(entropy: Tensor, real: Tensor, bound: float) -> Tensor:
    return (entropy * real).sum(1) / real.sum(1).clamp_min(1) < bound


def _with_finished(draft: Draft, before: Draft | None, real: Tensor, rows: Tensor) -> Draft:
    """The draft of the whole batch from that of ``rows`` (R,) and the one before.

    Rows that were finished keep what they had. The others are when ``draft`` says so and their text stood still.
    """
    if before is None:
        return replace(draft, finished=torch.zeros_like(draft.finished))
    going = ~before.finished[rows]
    places = rows[going]
    same = ((draft.tokens == before.tokens[rows]) | ~real).all(1)

    def held(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, places, new[going])

    return Draft(
        step=draft.step,
        tokens=held(before.tokens, draft.tokens),
        entropy=held(before.entropy, draft.entropy),
        log_probability=held(before.log_probability, draft.log_probability),
        accepted=held(before.accepted, draft.accepted),
        finished=held(before.finished, draft.finished & same),
    )


def likely_enough(surprise: Tensor, real: Tensor, threshold: float) -> Tensor:
    """Places whose token has at least the probability ``threshold``, and each row's likeliest: (B, L) bool.

    surprise: (B, L) minus the log-probability, in nats. Only ``real`` ones count.
    """
    hidden = surprise.masked_fill(~real, float("inf"))
    likeliest = torch.zeros_like(real).scatter(1, hidden.argmin(1, keepdim=True), value=True)
    return ((-hidden).exp() >= threshold) & real | likeliest & real


def within_bound(entropy: Tensor, real: Tensor, bound: float) -> Tensor:
    """The surest places of each row: (B, L) entropies to (B, L) bool; at least one a row, only ``real`` ones count."""
    ordered, places = entropy.masked_fill(~real, float("inf")).sort(dim=1)
    before = F.pad(ordered[:, :-1], (1, 0)).cumsum(1)  # of the surer ones
    accepted = (before <= bound) & ordered.isfinite()
    return torch.zeros_like(real).scatter(1, places, accepted)


def fresh_rows(sizes: Sequence[int], width: int, dice: Sequence[torch.Generator], *, vocabulary: int) -> Tensor:
    """Uniform noise (B, width): each row draws as many tokens as it uses, whatever its neighbours' sizes."""
    out = torch.zeros(len(sizes), width, dtype=torch.long)
    for row, (size, die) in enumerate(zip(sizes, dice, strict=True)):
        out[row, :size] = noise((size,), vocabulary=vocabulary, generator=die)
    return out


def _draw(
    logits: Tensor, likely: Tensor, temperature: float, sizes: Sequence[int], dice: Sequence[torch.Generator]
) -> Tensor:
    """One token a place from (B, L, V) logits, each row with its own die; temperature 0 takes the ``likely`` ones."""
    tokens = likely.clone()
    if temperature > 0:
        for row, (size, die) in enumerate(zip(sizes, dice, strict=True)):
            shares = (logits[row, :size] / temperature).softmax(-1).cpu()  # where the die is
            tokens[row, :size] = torch.multinomial(shares, 1, generator=die)[:, 0]
    return tokens
