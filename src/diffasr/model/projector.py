"""The small trained bridge: speech frames in, audio tokens of the language model's width out."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.model.config import HEAD_WIDTH
from diffasr.model.layers import Block, key_mask


class Projector(nn.Module):
    """Convolutions, ``strides`` of them of stride 2 and ``steady`` ones behind, a linear layer, and transformer layers.

    The last norm gives the audio tokens the size that the language model's head expects, ``scale`` a channel: Whisper's
    needs vectors of length 200, and a linear layer alone takes hundreds of steps to grow to it.
    ``strides`` of 3 turn 1500 frames into 188 audio tokens (the 26 B system); 1 turns 50 frames a second into 25.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        speech_width: int,
        hidden: int,
        width: int,
        strides: int,
        steady: int = 0,
        layers: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.steps = [2] * strides + [1] * steady
        widths = [speech_width, *[hidden] * len(self.steps)]
        self.norm = nn.LayerNorm(speech_width)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=3, stride=step, padding=1)
            for (a, b), step in zip(pairwise(widths), self.steps, strict=True)
        )
        self.linear = nn.Linear(hidden, width)
        heads = max(1, width // HEAD_WIDTH)
        self.layers = nn.ModuleList(Block(width, heads, 4 * width, hears=False) for _ in range(layers))
        self.out_norm = nn.LayerNorm(width)
        nn.init.constant_(self.out_norm.weight, scale)

    @property
    def frames(self) -> int:
        """Encoder frames an audio token."""
        return math.prod(self.steps)

    def slots(self, frames: Tensor) -> Tensor:
        """How many audio tokens come from so many frames: each stride of 2 halves, rounded up."""
        for step in self.steps:
            frames = (frames + step - 1) // step
        return frames

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Map (B, T, S) frames, ``lengths`` of them real, to (B, N, D) audio tokens. Rows do not see their padding."""
        x = self.norm(frames).transpose(1, 2)  # (B, S, T)
        for conv, step in zip(self.convs, self.steps, strict=True):
            real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]  # (B, T)
            x = F.gelu(conv(x * real[:, None]))  # (B, hidden, ceil(T / step))
            lengths = (lengths + step - 1) // step
        x = self.linear(x.transpose(1, 2))  # (B, N, D)
        mask = key_mask(lengths, x.shape[1])
        for block in self.layers:
            x = block(x, mask)
        return self.out_norm(x)
