"""From noise to text: a canvas is denoised a few times, and each draft is handed out as it comes.

At every step the surest places are accepted and the rest is drawn anew from noise. The entropy bound accepts the k
surest places while their entropies, less the largest, stay under a bound: arXiv:2505.24857 section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.corrupt import noise
from diffasr.errors import OptionError

Denoise = Callable[[Tensor, Tensor | None], Tensor]
"""Canvas (B, L) and the step before's logits (B, L, V) or None, to logits (B, L, V)."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How a transcript is drawn."""

    steps: int = 8
    """Model calls a window, at most."""
    start: Literal["ctc", "noise"] = "ctc"
    """What the canvas starts from: CTC's text, or random tokens."""
    seed_noise: float = 0.0
    """Share of the CTC canvas that is replaced by random tokens before the first step."""
    temperature: float = 0.8
    """Of the first step."""
    final_temperature: float = 0.0
    """Of the last step; linear in between. 0 takes the most likely token."""
    entropy_bound: float = 0.1
    """Nats that the accepted places may hold together, the least sure of them not counted."""
    accept: Literal["entropy", "all"] = "entropy"
    """``entropy``: renew what is over the bound. ``all``: keep every token, as in plain refinement."""
    stop_entropy: float = 0.005
    """A row is done when its text did not change in a step and its mean entropy is under this, in nats."""
    ctc_weight: float = 0.0
    """How much CTC's logits count beside the denoiser's, at the places that CTC put there."""
    self_conditioning: bool = True
    """Show each step what the step before believed."""
    seed: int = 0
    """Of the random numbers. Same seed, same transcript."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"steps must be at least 1, got {self.steps}")
        if self.start not in ("ctc", "noise"):
            raise OptionError(f"start must be ctc or noise, got {self.start!r}")
        if self.accept not in ("entropy", "all"):
            raise OptionError(f"accept must be entropy or all, got {self.accept!r}")
        if not 0 <= self.seed_noise <= 1:
            raise OptionError(f"seed_noise is a share from 0 to 1, got {self.seed_noise}")
        for name in ("temperature", "final_temperature", "entropy_bound", "ctc_weight", "stop_entropy"):
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
    denoise: Denoise, canvas: Tensor, lengths: Tensor, options: SamplingOptions, *, vocabulary: int
) -> Iterator[Draft]:
    """Denoise ``canvas`` (B, L), of which each row uses ``lengths``, and yield a draft a step.

    Each row draws from its own generator, so that a row's text does not depend on its neighbours. A row that is
    finished keeps its draft; when all are, no more steps follow.
    """
    sizes = lengths.tolist()
    dice = [torch.Generator().manual_seed(options.seed) for _ in sizes]
    real = torch.arange(canvas.shape[1]) < lengths[:, None]  # (B, L)
    previous: Tensor | None = None
    best: Draft | None = None
    for step in range(1, options.steps + 1):
        logits = denoise(canvas, previous if options.self_conditioning else None).float()
        draft = _read(logits, step, real, best, options)
        chosen = _draw(logits, options.temperature_at(step - 1), sizes, dice)
        if options.accept == "all":
            accepted = torch.ones_like(real)
        else:
            accepted = within_bound(draft.entropy, real, options.entropy_bound)
        canvas = torch.where(accepted, chosen, fresh_rows(sizes, canvas.shape[1], dice, vocabulary=vocabulary))
        best = Draft(**(vars(draft) | {"accepted": accepted & real}))
        previous = logits
        yield best
        if bool(best.finished.all()):
            return


def within_bound(entropy: Tensor, real: Tensor, bound: float) -> Tensor:
    """The surest places of each row: (B, L) entropies to (B, L) bool; at least one a row, only ``real`` ones count."""
    ordered, places = entropy.masked_fill(~real, float("inf")).sort(dim=1)
    before = F.pad(ordered[:, :-1], (1, 0)).cumsum(1)  # of the surer ones
    accepted = (before <= bound) & ordered.isfinite()
    return torch.zeros_like(real).scatter(1, places, accepted)


def _read(logits: Tensor, step: int, real: Tensor, before: Draft | None, options: SamplingOptions) -> Draft:
    """The draft that ``logits`` (B, L, V) say; a row that was finished keeps what it had."""
    log_probs = logits.log_softmax(-1)
    score, tokens = log_probs.max(-1)  # (B, L)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    finished = torch.zeros(len(real), dtype=torch.bool)
    if before is not None:
        same = ((tokens == before.tokens) | ~real).all(1)
        mean = (entropy * real).sum(1) / real.sum(1).clamp_min(1)
        finished = before.finished | (same & (mean < options.stop_entropy))
        held = before.finished[:, None]
        tokens = torch.where(held, before.tokens, tokens)
        entropy = torch.where(held, before.entropy, entropy)
        score = torch.where(held, before.log_probability, score)
    return Draft(step=step, tokens=tokens, entropy=entropy, log_probability=score, accepted=real, finished=finished)


def fresh_rows(sizes: Sequence[int], width: int, dice: Sequence[torch.Generator], *, vocabulary: int) -> Tensor:
    """Uniform noise (B, width): each row draws as many tokens as it uses, whatever its neighbours' sizes."""
    out = torch.zeros(len(sizes), width, dtype=torch.long)
    for row, (size, die) in enumerate(zip(sizes, dice, strict=True)):
        out[row, :size] = noise((size,), vocabulary=vocabulary, generator=die)
    return out


def _draw(logits: Tensor, temperature: float, sizes: Sequence[int], dice: Sequence[torch.Generator]) -> Tensor:
    """One token a place from (B, L, V) logits, each row with its own die; temperature 0 takes the most likely."""
    tokens = logits.argmax(-1)
    if temperature > 0:
        for row, (size, die) in enumerate(zip(sizes, dice, strict=True)):
            shares = (logits[row, :size] / temperature).softmax(-1)
            tokens[row, :size] = torch.multinomial(shares, 1, generator=die)[:, 0]
    return tokens
