"""From noise to text: a canvas is denoised a few times, and each draft is handed out as it comes.

At every step the surest places are accepted and the rest is drawn anew from noise. The entropy bound accepts the k
surest places while their entropies, less the largest, stay under a bound: arXiv:2505.24857 section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.corrupt import noise
from diffasr.errors import OptionError

FEW = 8
"""Places whose logits are looked at together."""
Denoise = Callable[[Tensor, Tensor | None], Tensor]
"""Canvas (B, L) and the step before's logits (B, L, V) or None, to logits (B, L, V)."""
Renew = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens drawn (B, L), the probability of each (B, L) and which of them were accepted (B, L), to the tokens that take
the place of the others (B, L)."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a transcript is drawn."""

    steps: int = 8
    """Model calls a window, at most."""
    start: Literal["ctc", "noise"] = "ctc"
    """What the canvas starts from: CTC's text, or random tokens."""
    seed_noise: float = 0.0
    """Share of the CTC canvas that is replaced by random tokens before the first step."""
    temperature: float = 0.0
    """Of the first step. 0 takes the most likely token."""
    final_temperature: float = 0.0
    """Of the last step; linear in between."""
    entropy_bound: float = 0.1
    """Nats that the accepted places may hold together, the least sure of them not counted."""
    accept: Literal["prefix", "entropy", "all"] = "prefix"
    """``prefix``: up to the first place that the model changed, that one included; what follows is renewed.
    ``entropy``: the surest places, within the bound. ``all``: every place, as in plain refinement."""
    confidence: float = 1.0
    """With ``prefix`` from CTC's text: what the model changes further on is taken into the canvas, not accepted, where
    it is likelier than this. 1: nothing is."""
    stop_entropy: float = 0.005
    """A row is done when its text did not change in a step and its mean entropy is under this, in nats; with
    ``prefix``, when the model changed nothing."""
    ctc_weight: float = 0.0
    """How much CTC's logits count beside the denoiser's, at the places that CTC put there."""
    self_conditioning: bool = False
    """Show each step what the step before believed."""
    votes: int = 1
    """Canvases of each window, merged word by word. All but the first start from other noise, or from a sample of what
    CTC may have heard."""
    seed: int = 0
    """Of the random numbers. Same seed, same transcript."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"steps must be at least 1, got {self.steps}")
        if self.votes < 1:
            raise OptionError(f"votes must be at least 1, got {self.votes}")
        if self.start not in ("ctc", "noise"):
            raise OptionError(f"start must be ctc or noise, got {self.start!r}")
        if self.accept not in ("prefix", "entropy", "all"):
            raise OptionError(f"accept must be prefix, entropy or all, got {self.accept!r}")
        if not 0 <= self.seed_noise <= 1:
            raise OptionError(f"seed_noise is a share from 0 to 1, got {self.seed_noise}")
        for name in ("temperature", "final_temperature", "entropy_bound", "confidence", "ctc_weight", "stop_entropy"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise OptionError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

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


def sample(
    denoise: Denoise,
    canvas: Tensor,
    lengths: Tensor,
    options: SamplingOptions,
    *,
    end: int,
    renew: Renew | None = None,
) -> Iterator[Draft]:
    """Denoise ``canvas`` (B, L), of which each row uses ``lengths``, and yield a draft a step.

    Behind a row's first ``end`` everything is ``end``. What a step does not accept is given to ``renew``; without one
    it is drawn anew from noise. Each row draws from its own generator, so that a row's text does not depend on its
    neighbours. A row that is finished keeps its draft; when all are, no more steps follow.
    """
    sizes = lengths.tolist()
    dice = [torch.Generator().manual_seed(options.seed) for _ in sizes]
    real = torch.arange(canvas.shape[1]) < lengths[:, None]  # (B, L)
    previous: Tensor | None = None
    best: Draft | None = None
    for step in range(1, options.steps + 1):
        logits = denoise(canvas, previous if options.self_conditioning else None).float()
        best_tokens, total, entropy = beliefs(logits)  # (B, L) each
        drawn = _draw(logits, best_tokens, options.temperature_at(step - 1), sizes, dice)
        chosen = closed(drawn, end)
        match options.accept:
            case "all":
                accepted = real
            case "entropy":
                accepted = within_bound(entropy, real, options.entropy_bound)
            case "prefix":
                accepted = unchanged_so_far(chosen, canvas) & real
        if renew is None:
            fresh = fresh_rows(sizes, canvas.shape[1], dice, vocabulary=logits.shape[2])
        else:
            fresh = renew(drawn, (_of(logits, drawn) - total).exp(), accepted)
        canvas = torch.where(accepted, chosen, fresh)
        likely = closed(best_tokens, end)
        tokens = torch.where(accepted, likely, canvas) if options.accept == "prefix" else likely
        score = _of(logits, tokens) - total
        done = accepted.eq(real).all(1) if options.accept == "prefix" else _is_sure(entropy, real, options.stop_entropy)
        best = _with_finished(Draft(step=step, tokens=tokens, entropy=entropy, log_probability=score,
                                    accepted=accepted, finished=done), best, real)  # fmt: skip
        previous = logits
        yield best
        if bool(best.finished.all()):
            return


def beliefs(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, V) logits to the likeliest tokens, the logarithm of the sum of exponentials, and the entropy in nats, all
    (B, L). A few places at a time: what is V wide then stays in the processor's cache."""
    parts = []
    for some in logits.flatten(0, 1).split(FEW):  # (FEW, V)
        top, tokens = some.max(-1)
        below = some - top[:, None]
        shares = below.exp()
        total = shares.sum(-1)
        parts.append((tokens, top + total.log(), total.log() - shares.mul_(below).sum(-1) / total))
    tokens, totals, entropies = (torch.cat(column).view(logits.shape[:2]) for column in zip(*parts, strict=True))
    return tokens, totals, entropies


def _of(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(2, tokens[..., None])[..., 0]  # (B, L)


def closed(tokens: Tensor, end: int) -> Tensor:
    """(B, L) tokens with nothing but ``end`` behind each row's first."""
    ends = tokens == end
    return tokens.masked_fill(ends.cumsum(1) > ends.long(), end)


def unchanged_so_far(chosen: Tensor, canvas: Tensor) -> Tensor:
    """Places before which ``chosen`` (B, L) is ``canvas`` (B, L): all up to the first change, that one included."""
    changed = (chosen != canvas).long()
    return changed.cumsum(1) - changed == 0


def _is_sure(entropy: Tensor, real: Tensor, bound: float) -> Tensor:
    return (entropy * real).sum(1) / real.sum(1).clamp_min(1) < bound


def _with_finished(draft: Draft, before: Draft | None, real: Tensor) -> Draft:
    """Rows that were finished keep what they had. The others are when ``draft`` says so and their text stood still."""
    if before is None:
        return replace(draft, finished=torch.zeros_like(draft.finished))
    same = ((draft.tokens == before.tokens) | ~real).all(1)
    held = before.finished[:, None]
    return replace(
        draft,
        tokens=torch.where(held, before.tokens, draft.tokens),
        entropy=torch.where(held, before.entropy, draft.entropy),
        log_probability=torch.where(held, before.log_probability, draft.log_probability),
        finished=before.finished | (draft.finished & same),
    )


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
            shares = (logits[row, :size] / temperature).softmax(-1)
            tokens[row, :size] = torch.multinomial(shares, 1, generator=die)[:, 0]
    return tokens
