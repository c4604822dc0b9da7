"""Each loss against an independent computation, and the laws of the small CTC vocabulary."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.loss import ar_loss, candidate_labels, ctc_loss, diffusion_loss

BLANK = 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [diffusion_loss, ar_loss])
def test_cross_entropies_are_means_over_the_real_places(loss) -> None:  # type: ignore[no-untyped-def]
    logits, targets, lengths = randn(3, 6, 7), torch.randint(7, (3, 6)), torch.tensor([6, 1, 4])
    expected = [
        sum(-math.log(math.exp(logits[b, i, targets[b, i]]) / logits[b, i].exp().sum()) for i in range(n)) / n
        for b, n in enumerate(lengths.tolist())
    ]
    assert loss(logits, targets, lengths).tolist() == pytest.approx(expected, rel=1e-5)
    single = [float(F.cross_entropy(logits[b, :n], targets[b, :n])) for b, n in enumerate(lengths.tolist())]
    assert loss(logits, targets, lengths).tolist() == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("loss", [diffusion_loss, ar_loss])
def test_what_lies_past_the_length_does_not_matter(loss) -> None:  # type: ignore[no-untyped-def]
    logits, targets, lengths = randn(2, 5, 7).requires_grad_(), torch.randint(7, (2, 5)), torch.tensor([3, 5])
    value = loss(logits, targets, lengths)
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 3:].abs().sum() == 0
    assert logits.grad[0, :3].abs().sum() > 0
    changed, wrong = logits.detach().clone(), targets.clone()
    changed[0, 3:] = 100.0
    wrong[0, 3:] = 0
    assert torch.equal(loss(changed, wrong, lengths), value.detach())


def test_a_sure_and_right_answer_costs_nothing_and_a_flat_one_log_v() -> None:
    targets, lengths = torch.randint(9, (2, 4)), torch.tensor([4, 4])
    assert diffusion_loss(50.0 * F.one_hot(targets, 9), targets, lengths).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert ar_loss(torch.zeros(2, 4, 9), targets, lengths).tolist() == pytest.approx([math.log(9)] * 2)


def collapse(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def all_paths_loss(logits: Tensor, labels: list[int]) -> float:
    """Minus the log of the summed probability of every path that collapses to ``labels``: (N, V) logits."""
    shares = logits.double().softmax(-1)
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        if collapse(path) == labels:
            total += math.prod(float(shares[n, label]) for n, label in enumerate(path))
    return -math.log(total)


@pytest.mark.parametrize("labels", [[0], [0, 1], [1, 1], [3, 0, 3]])
@pytest.mark.parametrize("slots", [3, 5])
def test_ctc_is_the_sum_over_all_paths(labels: list[int], slots: int) -> None:
    logits = randn(1, 6, 4)
    tokens = torch.tensor([[*labels, 0, 0]])
    got = ctc_loss(logits, torch.tensor([slots]), tokens, torch.tensor([len(labels)]), blank=BLANK)
    assert got.item() == pytest.approx(all_paths_loss(logits[0, :slots], labels) / len(labels), rel=1e-4)


def test_ctc_rows_do_not_see_each_other_or_their_padding() -> None:
    logits, tokens = randn(3, 6, 5).requires_grad_(), torch.tensor([[0, 1, 3], [4, 2, 2], [1, 0, 2]])
    slots, lengths = torch.tensor([6, 2, 4]), torch.tensor([3, 1, 2])
    together = ctc_loss(logits, slots, tokens, lengths, blank=BLANK)
    for b in range(3):
        n, u = int(slots[b]), int(lengths[b])
        alone = ctc_loss(
            logits[b : b + 1, :n], slots[b : b + 1], tokens[b : b + 1, :u], lengths[b : b + 1], blank=BLANK
        )
        assert together[b].item() == pytest.approx(alone.item(), rel=1e-5)
    together.sum().backward()
    assert logits.grad is not None
    assert logits.grad[1, 2:].abs().sum() == 0


def test_more_labels_than_slots_costs_nothing_and_pulls_nothing() -> None:
    logits = randn(2, 2, 5).requires_grad_()
    loss = ctc_loss(
        logits, torch.tensor([2, 2]), torch.tensor([[0, 1, 3], [0, 0, 0]]), torch.tensor([3, 1]), blank=BLANK
    )
    loss.sum().backward()
    assert logits.grad is not None
    assert loss[0] == 0
    assert loss[1] > 0
    assert logits.grad[0].abs().sum() == 0
    assert logits.grad.isfinite().all()


def test_an_empty_text_costs_what_its_blanks_cost() -> None:
    logits = randn(1, 4, 5)
    loss = ctc_loss(logits, torch.tensor([4]), torch.zeros(1, 1, dtype=torch.long), torch.tensor([0]), blank=BLANK)
    assert loss.item() == pytest.approx(-float(logits[0].log_softmax(-1)[:, BLANK].sum()), rel=1e-5)


TOKENS = torch.tensor([[5, 1, 5], [7, 2, 2]])  # the last two are padding, which is the blank


def candidates(extra: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return candidate_labels(TOKENS, blank=BLANK, vocabulary=12, extra=extra, generator=dice)


@pytest.mark.parametrize("extra", [0, 3, 8, 1000])
def test_candidates_are_the_needed_labels_and_some_others(extra: int) -> None:
    labels, places, weight = candidates(extra)
    assert labels[0] == BLANK
    assert len(labels.unique()) == len(labels) == 4 + min(extra, 8)
    assert torch.equal(labels[places], TOKENS)
    assert set(labels[:4].tolist()) == {1, 2, 5, 7}
    assert weight[:4].tolist() == [0] * 4
    assert weight.isfinite().all()
    assert torch.equal(labels, candidates(extra)[0]), "the seed decides"


def test_with_every_label_drawn_ctc_and_its_gradient_are_those_of_the_whole_vocabulary() -> None:
    slots, lengths = torch.tensor([6, 4]), torch.tensor([3, 1])
    whole, part = randn(2, 6, 12).requires_grad_(), randn(2, 6, 12).requires_grad_()
    full = ctc_loss(whole, slots, TOKENS, lengths, blank=BLANK)
    labels, places, weight = candidates(1000)
    small = ctc_loss(part[:, :, labels] + weight, slots, places, lengths, blank=0)
    torch.testing.assert_close(small, full)
    full.sum().backward()
    small.sum().backward()
    torch.testing.assert_close(part.grad, whole.grad)


def test_the_drawn_labels_stand_for_all_that_were_left_out() -> None:
    logits = randn(12)
    whole = float(logits.exp().sum())
    sums = [
        float((logits[labels] + weight).exp().sum()) for labels, _, weight in (candidates(3, s) for s in range(3000))
    ]
    assert sum(sums) / len(sums) == pytest.approx(whole, rel=0.01)
    assert max(sums) > 1.1 * whole, "a single draw does not"
