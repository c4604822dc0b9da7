"""The ear: log-mel features in, speech frames out.

Two modes. ``padded`` encodes 30 s whatever the clip, as Whisper was trained; ``natural`` encodes only the real frames
and cuts the position table, for about six times less work on a five-second clip.
Source: arXiv:2212.04356 section 2.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.model.layers import Block, key_mask, table


class WhisperEncoder(nn.Module):
    """Whisper's audio encoder: two convolutions, fixed positions, a stack of blocks."""

    def __init__(self, *, mels: int, width: int, heads: int, layers: int, hidden: int, positions: int = 1500) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = table(positions, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden, hears=False) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    @staticmethod
    def frames(mel_frames: Tensor) -> Tensor:
        """How many speech frames come from so many mel frames: half, rounded up."""
        return (mel_frames + 1) // 2

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Encode (B, mels, M) features, of which row b has ``lengths[b]`` real ones, to (B, ceil(M / 2), S).

        Frames past a row's length are zero, and no real frame depends on them: a row of a batch equals the row alone.
        """
        real = key_mask(lengths, mel.shape[2])[:, 0]  # (B, 1, M)
        x = F.gelu(self.conv1(mel * real)) * real  # (B, S, M)
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (B, T, S)
        x = x + self.embed_positions.weight[: x.shape[1]]
        kept = self.frames(lengths)
        mask = None if bool((kept == x.shape[1]).all()) else key_mask(kept, x.shape[1])
        for block in self.layers:
            x = block(x, mask)
        x = self.layer_norm(x)
        return x if mask is None else x * mask[:, 0, 0, :, None]


def stack(features: list[Tensor], *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Log-mel features of several clips, each (mels, M), as one zero-padded batch (B, mels, M) and their lengths.

    multiple: M is one of so many frames.
    """
    lengths = torch.tensor([f.shape[1] for f in features])
    longest = -(-int(lengths.max()) // multiple) * multiple
    return torch.stack([F.pad(f, (0, longest - f.shape[1])) for f in features]), lengths
