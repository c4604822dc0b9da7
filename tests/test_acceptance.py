"""Laws of acceptance, which places of a canvas stay, and of rows that leave the batch."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_sampler import LENGTHS, V, doubts, noise, real_tokens, run
from torch import Tensor

from diffasr.diffusion import sampler
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.sampler import likely_enough, sample, within_bound

quarters = st.integers(0, 20).map(lambda n: n / 4)  # sums of quarters are exact


def slow_bound(entropies: list[float], bound: float) -> list[float]:
    """The accepted entropies of one row: take the surest while all taken but the last stay under the bound."""
    taken: list[float] = []
    for entropy in sorted(entropies):
        if sum(taken) > bound:
            break
        taken.append(entropy)
    return taken


@given(st.lists(st.lists(quarters, min_size=1, max_size=8), min_size=1, max_size=4), quarters)
def test_the_bound_accepts_what_a_slow_loop_accepts(rows: list[list[float]], bound: float) -> None:
    size = max(len(row) for row in rows) + 1
    entropy = torch.tensor([row + [0.0] * (size - len(row)) for row in rows])
    real = torch.arange(size) < torch.tensor([len(row) for row in rows])[:, None]
    accepted = within_bound(entropy, real, bound)
    assert not (accepted & ~real).any()
    for row, values in enumerate(rows):
        assert sorted(entropy[row, accepted[row]].tolist()) == slow_bound(values, bound)
    assert accepted.any(1).all(), "at least one a row"


def test_bound_0_accepts_the_surest_place_alone() -> None:
    entropy = torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.0, 0.0]])
    real = torch.tensor([[True, True, True], [True, False, False]])
    assert within_bound(entropy, real, 0.0).tolist() == [[False, True, False], [True, False, False]]


probabilities = st.integers(0, 16).map(lambda n: n / 16)  # exact


@given(st.lists(st.lists(probabilities, min_size=1, max_size=8), min_size=1, max_size=4), probabilities)
def test_a_threshold_accepts_what_is_likely_enough_and_the_likeliest(rows: list[list[float]], least: float) -> None:
    size = max(len(row) for row in rows) + 1
    shares = torch.tensor([row + [1.0] * (size - len(row)) for row in rows])
    real = torch.arange(size) < torch.tensor([len(row) for row in rows])[:, None]
    accepted = likely_enough(-shares.log(), real, least)
    assert not (accepted & ~real).any()
    for row, values in enumerate(rows):
        sure = [place for place, value in enumerate(values) if value >= least - 1e-6]
        kept = accepted[row].nonzero()[:, 0].tolist()
        assert kept == (sure or [values.index(max(values))])


def accepted_share(**options: Any) -> Tensor:
    """How often each place of a row of nine is accepted in the first step."""
    lengths = torch.full((40,), 9)
    (draft,) = run(doubts(lengths, 0.6), noise(lengths), lengths, steps=1, **options)
    return draft.accepted.float().mean(0)


def test_a_higher_threshold_accepts_less() -> None:
    shares = [accepted_share(accept="threshold", threshold=least).sum().item() for least in (0.0, 0.3, 0.6, 1.0)]
    assert shares[0] == 9
    assert shares[3] == pytest.approx(1)
    assert all(more > less for more, less in itertools.pairwise(shares))


@pytest.mark.parametrize(
    "rule", [{"accept": "threshold", "threshold": 0.3}, {"accept": "entropy", "entropy_bound": 2.0}]
)
def test_a_bias_makes_later_places_harder_to_accept_and_never_the_first(rule: dict[str, Any]) -> None:
    plain, biased = accepted_share(**rule), accepted_share(**rule, position_bias=2.0)
    assert biased[0] >= plain[0]
    assert biased[8] < plain[8]
    assert (biased - plain)[:4].mean() > (biased - plain)[5:].mean() + 0.1


@pytest.mark.parametrize("accept", ["prefix", "all"])
def test_where_order_is_the_rule_a_bias_is_not_asked(accept: str) -> None:
    assert real_tokens(run(doubts(LENGTHS), noise(), accept=accept, steps=3)) == real_tokens(
        run(doubts(LENGTHS), noise(), accept=accept, steps=3, position_bias=5.0)
    )


def asked(monkeypatch: pytest.MonkeyPatch, worthwhile: float, **options: Any) -> tuple[list[Any], list[int]]:
    """Drafts of the last step and how many rows each call of the denoiser was given."""
    monkeypatch.setattr(sampler, "WORTHWHILE", worthwhile)
    lengths = torch.tensor([9, 4, 7, 2, 9, 5])
    counts: list[int] = []
    whole = doubts(lengths)

    def denoise(canvas: Tensor, previous: Tensor | None, rows: Tensor) -> Tensor:
        counts.append(len(rows))
        full, belief = torch.zeros(6, 9, dtype=torch.long), torch.zeros(6, 9, V, dtype=torch.double)
        full[rows] = canvas
        if previous is not None:
            belief[rows] = previous.double()
        return whole(full, None if previous is None else belief)[rows]

    made = SamplingOptions(steps=12, stop_entropy=1.2, **options)
    *_, last = sample(denoise, noise(lengths), lengths, made, end=0)
    real = torch.arange(9) < lengths[:, None]
    parts = (last.tokens * real, last.log_probability * real, last.entropy * real, last.finished)
    return [part.tolist() for part in parts], counts


@pytest.mark.parametrize("self_conditioning", [False, True])
@pytest.mark.parametrize("accept", ["prefix", "entropy", "threshold", "all"])
def test_finished_rows_leave_the_batch_and_nothing_else_changes(
    accept: str, self_conditioning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accept": accept, "self_conditioning": self_conditioning, "temperature": 0.7}
    stayed, all_rows = asked(monkeypatch, 2.0, **options)
    left, fewer = asked(monkeypatch, 1e-9, **options)
    some, between = asked(monkeypatch, 0.3, **options)
    assert stayed == left == some
    assert set(all_rows) == {6}
    assert all(b <= a for a, b in itertools.pairwise(fewer))
    assert sum(fewer) <= sum(between) <= sum(all_rows)
    assert len(fewer) == len(between) == len(all_rows)
    if accept == "all":
        assert sum(fewer) < sum(all_rows), "the law was put to the test"
