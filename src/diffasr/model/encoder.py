"""The ear: log-mel features in, speech frames out.

Two modes. ``padded`` encodes 30 s whatever the clip, as Whisper was trained; ``natural`` encodes only the real frames
and cuts the position table, for about six times less work on a five-second clip.
Source: arXiv:2212.04356 section 2.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.model.layers import Block, key_mask, table

ROUND = 64
"""Frames of a row by itself are filled up to a multiple of this: for each new number a kernel is written, and kept."""


class WhisperEncoder(nn.Module):
    """Whisper's audio encoder: two convolutions, fixed positions, a stack of blocks."""

    def __init__(self, *, mels: int, width: int, heads: int, layers: int, hidden: int, positions: int = 1500) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = table(positions, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden, hears=False) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.is_apart = False
        """Whether the first convolution, in floats, takes row by row: see ``layers.Attention``."""

    @staticmethod
    def frames(mel_frames: Tensor) -> Tensor:
        """How many speech frames come from so many mel frames: half, rounded up."""
        return (mel_frames + 1) // 2

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Encode (B, mels, M) features, of which row b has ``lengths[b]`` real ones, to (B, ceil(M / 2), S).

        Frames past a row's length are zero, and no real frame depends on them: a row of a batch equals the row alone.
        """
        real = key_mask(lengths, mel.shape[2])[:, 0]  # (B, 1, M)
        x = F.gelu(self._first(mel * real, lengths)) * real  # (B, S, M)
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (B, T, S)
        x = x + self.embed_positions.weight[: x.shape[1]]
        kept = self.frames(lengths)
        mask = None if bool((kept == x.shape[1]).all()) else key_mask(kept, x.shape[1])
        for block in self.layers:
            x = block(x, mask, lengths=kept)
        x = self.layer_norm(x)
        return x if mask is None else x * mask[:, 0, 0, :, None]

    def _first(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """The first convolution, (B, mels, M) to (B, S, M); what is behind a row's length is not to be used."""
        if not self.is_apart:
            return self.conv1(mel)
        out = mel.new_zeros(len(mel), self.conv1.out_channels, mel.shape[2])
        for row, size in enumerate(lengths.tolist()):
            filled = F.pad(mel[row : row + 1, :, :size], (0, -size % ROUND))
            out[row : row + 1, :, :size] = self.conv1(filled)[:, :, :size]
        return out


def stack(features: list[Tensor], *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Log-mel features of several clips, each (mels, M), as one zero-padded batch (B, mels, M) and their lengths.

    multiple: M is one of so many frames.
    """
    lengths = torch.tensor([f.shape[1] for f in features])
    longest = -(-int(lengths.max()) // multiple) * multiple
    return torch.stack([F.pad(f, (0, longest - f.shape[1])) for f in features]), lengths
