"""What the sampler reads off logits, against torch's own one after another."""

import torch

from diffasr.diffusion.sampler import FEW, beliefs


def test_beliefs_are_argmax_logsumexp_and_entropy() -> None:
    logits = 4 * torch.randn(3, FEW + 1, 50, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 0.0  # all alike
    logits[1, 1, 7] = 90.0  # no doubt
    tokens, totals, entropy = beliefs(logits)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(totals, logits.logsumexp(-1))
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=1e-5)
    assert (entropy >= 0).all()


def test_beliefs_leave_the_logits_alone_and_order_small_entropies() -> None:
    gaps = torch.tensor([12.0, 20.0, 30.0, 50.0])
    logits = torch.zeros(1, 4, 9)
    logits[0, :, 2] = gaps
    kept = logits.clone()
    entropy = beliefs(logits)[2][0]
    assert torch.equal(logits, kept)
    assert (entropy.diff() < 0).all(), "as long as float32 can tell them apart"
