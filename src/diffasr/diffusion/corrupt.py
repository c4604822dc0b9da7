"""Forward processes: clean tokens in, partly noisy tokens out.

Uniform: a token becomes a random one with probability t (arXiv:2107.03006 section 3.1, in its continuous-time limit
alpha(t) = 1 - t). Absorbing: it becomes the mask token instead.
"""

from typing import Literal

import torch
from torch import Tensor

from diffasr.errors import OptionError

Process = Literal["uniform", "absorbing"]


def draw_times(rows: int, *, full_share: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels (rows,) in [0.001, 1]: uniform, but ``full_share`` of them 1, so that decoding can start from
    nothing."""
    t = torch.rand(rows, generator=generator).clamp_min(1e-3)
    return torch.where(torch.rand(rows, generator=generator) < full_share, 1.0, t)


def noise(
    shape: tuple[int, ...], *, vocabulary: int, process: Process = "uniform", generator: torch.Generator | None = None
) -> Tensor:
    """Tokens that say nothing: uniform over the vocabulary, or all of them the mask (the last id)."""
    match process:
        case "uniform":
            return torch.randint(vocabulary, shape, generator=generator)
        case "absorbing":
            return torch.full(shape, vocabulary - 1)
        case _:
            raise OptionError(f"process must be uniform or absorbing, got {process!r}")


def corrupt(
    tokens: Tensor,
    t: Tensor,
    *,
    vocabulary: int,
    process: Process = "uniform",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace each token with probability ``t`` of its row.

    tokens: (B, L) int64. t: (B,) in [0, 1]. For ``absorbing`` the mask is the vocabulary's last id.
    Returns noisy tokens and the replaced places, both (B, L); a replaced token may by chance be the same one.
    """
    replaced = torch.rand(tokens.shape, generator=generator) < t[:, None]
    fresh = noise(tuple(tokens.shape), vocabulary=vocabulary, process=process, generator=generator)
    return torch.where(replaced, fresh, tokens), replaced
