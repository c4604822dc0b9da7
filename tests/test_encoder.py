"""The ear equals transformers' Whisper encoder, and a row of a batch equals the row alone."""

import pytest
import torch
from conftest import MELS, WIDTH, tiny_whisper
from torch import Tensor

from diffasr.model.encoder import WhisperEncoder, stack

POSITIONS = 60


def tiny_encoder(mels: int = MELS, positions: int = POSITIONS) -> WhisperEncoder:
    """Ours with the weights of ``tiny_whisper``; loading is strict, so the names are the same."""
    encoder = WhisperEncoder(mels=mels, width=WIDTH, heads=2, layers=2, hidden=64, positions=positions)
    encoder.load_state_dict(tiny_whisper(mels=mels, positions=positions).model.encoder.state_dict())
    return encoder.eval().requires_grad_(False)


def mel_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mels", [MELS, 128])
def test_a_full_window_equals_transformers(mels: int) -> None:
    mel = mel_of(2, mels, 2 * POSITIONS)
    expected = tiny_whisper(mels=mels).model.encoder(mel).last_hidden_state
    ours = tiny_encoder(mels)(mel, torch.tensor([2 * POSITIONS] * 2))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [13, 40])
def test_natural_length_is_whisper_with_a_shorter_position_table(frames: int) -> None:
    mel = mel_of(1, MELS, 2 * frames)
    short = tiny_whisper(positions=frames).model.encoder
    weights = tiny_whisper().model.encoder.state_dict()
    short.load_state_dict(weights | {"embed_positions.weight": weights["embed_positions.weight"][:frames]})
    ours = tiny_encoder()(mel, torch.tensor([2 * frames]))
    torch.testing.assert_close(ours, short(mel).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_row_of_a_batch_equals_the_row_alone_and_padding_is_zero() -> None:
    encoder, lengths = tiny_encoder(), [7, 120, 30, 31, 1]
    batch, sizes = stack([mel_of(MELS, n, seed=n) for n in lengths])
    together = encoder(batch, sizes)
    for row, n in enumerate(lengths):
        kept = (n + 1) // 2
        alone = encoder(mel_of(MELS, n, seed=n)[None], torch.tensor([n]))
        assert alone.shape == (1, kept, WIDTH)
        torch.testing.assert_close(together[row, :kept], alone[0], rtol=1e-4, atol=1e-5)
        assert together[row, kept:].abs().sum() == 0


def test_what_lies_past_the_length_does_not_matter() -> None:
    encoder, lengths = tiny_encoder(), torch.tensor([9, 40])
    clean, dirty = mel_of(2, MELS, 40), mel_of(2, MELS, 40)
    dirty[0, :, 9:] = 50.0
    assert torch.equal(encoder(clean, lengths), encoder(dirty, lengths))


def test_frames_are_half_the_mel_frames_rounded_up() -> None:
    assert WhisperEncoder.frames(torch.tensor([1, 2, 3, 3000])).tolist() == [1, 1, 2, 1500]
    assert tiny_encoder()(mel_of(1, MELS, 5), torch.tensor([5])).shape[1] == 3


def test_stack_pads_with_zeros_and_keeps_the_lengths() -> None:
    features = [mel_of(3, n) for n in (4, 1, 6)]
    batch, lengths = stack(features)
    assert batch.shape == (3, 3, 6)
    assert lengths.tolist() == [4, 1, 6]
    for row, feature in enumerate(features):
        assert torch.equal(batch[row, :, : lengths[row]], feature)
        assert batch[row, :, lengths[row] :].abs().sum() == 0
