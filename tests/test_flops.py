"""Operations counted from sizes are those that torch's own counter sees."""

from typing import Any

import pytest
import torch
from test_gemma import tiny_network, tiny_text
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffasr.model.config import EncoderConfig
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import full_text_config
from diffasr.model.network import Speech
from diffasr.train.distributed import recompute_
from diffasr.train.flops import Shapes, ear_flops, stack, step_flops

WINDOW, CANVAS, TEXT = 320, 16, 9


def counted(network: Any, *, conditioned: bool) -> float:
    """What torch counts of a step of one row, but for the projector."""
    speech = Speech(frames=torch.randn(1, WINDOW, 16), lengths=torch.tensor([WINDOW]))
    lengths, canvas = torch.tensor([CANVAS]), torch.zeros(1, CANVAS, dtype=torch.long)
    audio = network.projector(speech.frames, speech.lengths).detach().requires_grad_(True)
    network._project = lambda _: audio
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no fused one here
        total = network.ctc_logits(speech).mean()
        cache = network.prefill(speech, torch.tensor([0]))
        total = total + network.ar_logits(torch.zeros(1, TEXT, dtype=torch.long), cache).mean()
        previous = None
        if conditioned:
            with torch.no_grad():
                previous = network.denoise(canvas, cache, lengths=lengths)
        total = total + network.denoise(canvas, cache, lengths=lengths, previous=previous).mean()
        total.backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_costs_what_torch_counts(conditioned: bool, recompute: bool) -> None:
    network = tiny_network(window=1000, lora=True)
    network.backbone.set_experts_implementation("batched_mm")
    if recompute:
        recompute_(network)
    slots = WINDOW // 8
    shapes = Shapes(prompt=5 + slots, slots=slots, canvas=CANVAS, text=TEXT, ar_share=1.0,
                    conditioned_share=float(conditioned), recompute=recompute)  # fmt: skip
    expected = step_flops(tiny_text(1000), shapes, rank=2)
    assert counted(network, conditioned=conditioned) == pytest.approx(expected, rel=0.03)


def test_an_ear_costs_what_torch_counts() -> None:
    ears = EncoderConfig(mels=8, width=32, heads=2, layers=3, hidden=64)
    encoder = WhisperEncoder(mels=8, width=32, heads=2, layers=3, hidden=64)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(torch.randn(1, 8, 400), torch.tensor([400]))
    assert counter.get_total_flops() == pytest.approx(ear_flops(ears, 200), rel=0.03)


def test_four_billion_of_the_full_model_are_active() -> None:
    text = full_text_config()
    active = stack(text, 1, 0, rank=0).frozen / 2 + text["hidden_size"] * text["vocab_size"]
    assert 3.5e9 < active < 4.2e9, "it is called A4B"
