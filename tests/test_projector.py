"""Slot counts, and rows that do not see their padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffasr.model.projector import Projector


def projector(strides: int, layers: int = 0, steady: int = 0) -> Projector:
    torch.manual_seed(strides)
    bridge = Projector(speech_width=6, hidden=10, width=8, strides=strides, steady=steady, layers=layers)
    return bridge.requires_grad_(False)


def frames_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("strides", "slots"), [(1, 750), (2, 375), (3, 188)])
def test_a_window_of_1500_frames(strides: int, slots: int) -> None:
    bridge = projector(strides)
    assert bridge.slots(torch.tensor([1500])).tolist() == [slots]
    assert bridge(frames_of(1, 1500, 6), torch.tensor([1500])).shape == (1, slots, 8)


@given(st.integers(1, 3), st.integers(1, 60))
def test_slots_are_what_comes_out_and_every_frame_has_one(strides: int, length: int) -> None:
    bridge = projector(strides)
    slots = int(bridge.slots(torch.tensor(length)))
    assert bridge(frames_of(1, length, 6), torch.tensor([length])).shape == (1, slots, 8)
    assert slots == -(-length // 2**strides)


@pytest.mark.parametrize(("strides", "layers"), [(2, 0), (3, 0), (2, 2)])
def test_a_row_of_a_batch_equals_the_row_alone(strides: int, layers: int) -> None:
    bridge, lengths = projector(strides, layers), torch.tensor([30, 1, 17, 12])
    frames = frames_of(4, 30, 6)  # what lies past the length is no zero
    together = bridge(frames, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = bridge(frames[row : row + 1, :n], lengths[row : row + 1])
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)


def test_a_convolution_that_keeps_the_rate_says_between_what_a_stride_says() -> None:
    """The same weights: every second audio token is the one that a stride of 2 would have given."""
    coarse, fine = projector(2), projector(1, steady=1)
    fine.load_state_dict(coarse.state_dict())
    frames, lengths = frames_of(2, 61, 6), torch.tensor([61, 40])
    assert fine.slots(lengths).tolist() == [31, 20] and fine.frames == 2 and coarse.frames == 4
    found, wanted = fine(frames, lengths), coarse(frames, lengths)
    torch.testing.assert_close(found[0, ::2], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, :20:2], wanted[1, :10], rtol=1e-4, atol=1e-5)


def test_loudness_of_a_frame_is_normed_away_but_its_shape_is_heard() -> None:
    bridge, length = projector(2), torch.tensor([20])
    frames = frames_of(1, 20, 6)
    torch.testing.assert_close(bridge(3 * frames, length), bridge(frames, length), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(bridge(frames.flip(2), length), bridge(frames, length), atol=1e-2)


def test_with_layers_an_audio_token_hears_the_whole_clip() -> None:
    frames, length = frames_of(1, 80, 6), torch.tensor([80])
    other = frames.clone()
    other[:, -1] = frames_of(1, 6).flip(1)
    moved = [(p(frames, length) - p(other, length)).abs().amax((0, 2)) > 1e-6 for p in (projector(2), projector(2, 1))]
    assert moved[0].nonzero()[:, 0].tolist() == [19]
    assert moved[1].all()


def test_the_large_one_has_as_many_weights_as_the_design_says() -> None:
    with torch.device("meta"):
        bridge = Projector(speech_width=768, hidden=1408, width=2816, strides=3)
    assert sum(p.numel() for p in bridge.parameters()) == pytest.approx(19.1e6, rel=0.01)
