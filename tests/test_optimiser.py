"""Optimisers: every parameter learns by exactly one of them, and the state of both goes on where it stopped."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffasr.errors import RecipeError
from diffasr.train.optimiser import Optimiser

RATES = {"projector": 1e-2, "embedding": 1e-3}


def parts(seed: int = 0) -> dict[str, list[nn.Parameter]]:
    dice = torch.Generator().manual_seed(seed)
    shapes = {"projector": [(6, 4), (6,), (3, 4, 2)], "embedding": [(9, 4)]}
    return {part: [nn.Parameter(torch.randn(shape, generator=dice)) for shape in held] for part, held in shapes.items()}


def learn(optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        dice = torch.Generator().manual_seed(step)
        for parameter in optimiser.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=dice)
        optimiser.step()


def values(held: dict[str, list[nn.Parameter]]) -> list[Tensor]:
    return [p.detach().clone() for p in itertools.chain(*held.values())]


@pytest.mark.parametrize("muon", [False, True])
def test_every_parameter_learns_once_at_the_rate_of_its_part(muon: bool) -> None:
    held = parts()
    optimiser = Optimiser(held, RATES, decay=0.0, muon=muon)
    assert sorted(map(id, optimiser.parameters)) == sorted(map(id, itertools.chain(*held.values())))
    for group in optimiser.param_groups:
        owners = {part for part, mine in held.items() for p in group["params"] if any(p is m for m in mine)}
        assert [RATES[part] for part in owners] == [group["peak"]]


def test_muon_moves_all_directions_of_a_matrix_alike_and_adamw_does_not() -> None:
    spread = {}
    for muon in (False, True):
        held = parts()
        before = values(held)
        learn(Optimiser(held, RATES, decay=0.0, muon=muon), range(1))
        moved = torch.linalg.svdvals(held["projector"][0].detach() - before[0])
        spread[muon] = float(moved.max() / moved.min())
    assert spread[True] < 1.8 < spread[False]


def test_only_the_matrices_between_layers_are_muons() -> None:
    made = Optimiser(parts(), RATES, decay=0.1, muon=True).made
    shapes = [[tuple(p.shape) for group in one.param_groups for p in group["params"]] for one in made]
    assert [type(one) for one in made] == [torch.optim.AdamW, torch.optim.Muon]
    assert shapes == [[(6,), (3, 4, 2), (9, 4)], [(6, 4)]]


@pytest.mark.parametrize("muon", [False, True])
def test_what_is_never_read_of_an_embedding_does_not_shrink(muon: bool) -> None:
    held = parts()
    before, optimiser = values(held), Optimiser(held, RATES, decay=0.5, muon=muon)
    for parameter in optimiser.parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    kept = [torch.equal(a, b) for a, b in zip(before, values(held), strict=True)]
    assert kept == [False, False, False, True], "the embedding is last"


@pytest.mark.parametrize("muon", [False, True])
def test_a_state_goes_on_where_it_stopped(muon: bool) -> None:
    whole, broken = parts(), parts()
    learn(Optimiser(whole, RATES, decay=0.1, muon=muon), range(6))
    first = Optimiser(broken, RATES, decay=0.1, muon=muon)
    learn(first, range(3))
    second = Optimiser(broken, RATES, decay=0.1, muon=muon)
    second.load_state_dict(first.state_dict())
    learn(second, range(3, 6))
    for one, other in zip(values(whole), values(broken), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("states", [{"state": {}, "param_groups": []}, [{}], [{}, {}, {}]], ids=str)
def test_a_state_of_other_optimisers_is_refused(states: Any) -> None:
    with pytest.raises(RecipeError, match="muon"):
        Optimiser(parts(), RATES, decay=0.1, muon=True).load_state_dict(states)


def test_without_muon_it_is_torchs_adamw_but_for_what_decays() -> None:
    ours, theirs = parts(), parts()
    learn(Optimiser(ours, dict.fromkeys(RATES, 1e-2), decay=0.1, muon=False), range(4))
    flat = list(itertools.chain(*theirs.values()))
    groups = [{"params": theirs["projector"]}, {"params": theirs["embedding"], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(4):
        dice = torch.Generator().manual_seed(step)
        for parameter in flat:
            parameter.grad = torch.randn(parameter.shape, generator=dice)
        adamw.step()
    for one, other in zip(values(ours), values(theirs), strict=True):
        torch.testing.assert_close(one, other)
