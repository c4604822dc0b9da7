"""From noise to text: a canvas is denoised a few times, and each draft is handed out as it comes.

At every step the surest places are accepted and the rest is drawn anew from noise. The entropy bound accepts the k
surest places while their entropies, less the largest, stay under a bound: arXiv:2505.24857 section 3. A threshold
accepts every place that is likelier than a fixed number.

A row that is finished leaves the batch: the denoiser is not asked about it again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.corrupt import noise
from diffasr.diffusion.options import SamplingOptions

FEW, MANY = 8, 4096
"""Places whose logits are looked at together: on a CPU, and on a GPU, which is quick if it is seldom asked."""
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
    drawn: Tensor
    """(R, L) a token for each place."""
    accepted: Tensor
    """(R, L) bool: which of them stay."""


Renew = Callable[[Step], Tensor]
"""What takes the place of all that was not accepted: (R, L) tokens."""


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
) -> Iterator[Draft]:
    """Denoise ``canvas`` (B, L), of which each row uses ``lengths``, and yield a draft a step.

    Behind a row's first ``end`` everything is ``end``. What a step does not accept is given to ``renew``; without one
    it is drawn anew from noise. Each row draws from its own generator, so that a row's text does not depend on its
    neighbours; seeds: of each row, None: that of ``options`` for all. A row that is finished keeps its draft and leaves
    the batch, with others that are; when all are, no more steps follow. All of this is on the CPU but the logits, which
    stay where ``denoise`` made them.
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
        best_tokens, total, entropy = (found.cpu() for found in beliefs(logits))  # (R, L) each
        drawn = _draw(logits, best_tokens, options.temperature_at(step - 1), mine, own)
        chosen, surprise = closed(drawn, end), total - _of(logits, drawn)
        accepted = _accepted(options, real, chosen == seen, entropy, surprise)
        if renew is None:
            fresh = fresh_rows(mine, canvas.shape[1], own, vocabulary=logits.shape[2])
        else:
            fresh = renew(Step(rows=rows, canvas=seen, logits=logits, drawn=drawn, accepted=accepted))
        now = torch.where(accepted, chosen, fresh)
        canvas = canvas.index_copy(0, rows, now)
        tokens, done = closed(best_tokens, end), _is_sure(entropy, real, options.stop_entropy)
        if options.accept in ("prefix", "auto"):
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
