"""Laws of the forward processes."""

import pytest
import torch

from diffasr.diffusion.corrupt import corrupt, draw_times, noise
from diffasr.errors import OptionError

V = 20


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("process", ["uniform", "absorbing"])
def test_nothing_changes_at_0_and_everything_at_1(process: str) -> None:
    tokens = torch.randint(V - 1, (40, 50), generator=dice())
    kept, replaced = corrupt(tokens, torch.zeros(40), vocabulary=V, process=process, generator=dice())
    assert torch.equal(kept, tokens)
    assert not replaced.any()
    gone, replaced = corrupt(tokens, torch.ones(40), vocabulary=V, process=process, generator=dice())
    assert replaced.all()
    assert (gone == tokens).float().mean() < 2 / V, "a replaced token is the same one only by chance"


def test_full_noise_is_uniform_whatever_the_text() -> None:
    tokens = torch.full((100, 2000), 3)
    noisy, _ = corrupt(tokens, torch.ones(100), vocabulary=V, generator=dice())
    counts = noisy.flatten().bincount(minlength=V).double()
    expected = noisy.numel() / V
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert len(counts) == V
    assert chi_square < V - 1 + 5 * (2 * (V - 1)) ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_row_loses_its_own_share(share: float) -> None:
    tokens = torch.zeros(2, 20_000, dtype=torch.long)
    noisy, replaced = corrupt(tokens, torch.tensor([share, 1 - share]), vocabulary=V, generator=dice())
    assert replaced.float().mean(1).tolist() == pytest.approx([share, 1 - share], abs=0.02)
    assert torch.equal(noisy[~replaced], tokens[~replaced])
    assert (noisy[0] != 0).float().mean().item() == pytest.approx(share * (1 - 1 / V), abs=0.02)


def test_absorbing_writes_the_mask_and_only_where_it_says_so() -> None:
    tokens = torch.randint(V - 1, (8, 100), generator=dice())
    noisy, replaced = corrupt(tokens, torch.full((8,), 0.4), vocabulary=V, process="absorbing", generator=dice(1))
    assert torch.equal(noisy == V - 1, replaced)
    assert torch.equal(noisy[~replaced], tokens[~replaced])


def test_the_argument_is_left_alone_and_the_seed_decides() -> None:
    tokens = torch.randint(V, (8, 100), generator=dice())
    before = tokens.clone()
    t = torch.full((8,), 0.5)
    first, second, other = (corrupt(tokens, t, vocabulary=V, generator=dice(s))[0] for s in (1, 1, 2))
    assert torch.equal(tokens, before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_noise_has_the_shape_asked_for() -> None:
    assert noise((3, 5), vocabulary=V, generator=dice()).shape == (3, 5)
    assert noise((0,), vocabulary=V).shape == (0,)
    assert noise((4,), vocabulary=V, process="absorbing").tolist() == [V - 1] * 4
    with pytest.raises(OptionError, match="'gaussian'"):
        noise((1,), vocabulary=V, process="gaussian")  # type: ignore[arg-type]


@pytest.mark.parametrize("full_share", [0.0, 0.25, 1.0])
def test_times_are_uniform_but_for_the_full_ones(full_share: float) -> None:
    t = draw_times(20_000, full_share=full_share, generator=dice())
    assert t.shape == (20_000,)
    assert t.min() >= 1e-3
    assert t.max() <= 1
    assert (t == 1).float().mean().item() == pytest.approx(full_share, abs=0.02)
    rest = t[t < 1]
    for quantile in (0.25, 0.5, 0.75) if len(rest) else ():
        assert rest.quantile(quantile).item() == pytest.approx(quantile, abs=0.02)
    assert torch.equal(t, draw_times(20_000, full_share=full_share, generator=dice()))
