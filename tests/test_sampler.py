"""Laws of the sampler, with denoisers that are plain functions."""

import itertools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion import sampler
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.sampler import (
    Draft,
    Step,
    closed,
    fresh_rows,
    sample,
    unchanged_so_far,
)
from diffasr.errors import OptionError

WholeDenoise = Callable[[Tensor, Tensor | None], Tensor]
WholeRenew = Callable[[Tensor, Tensor], Tensor]
V = 12
NO_END = -1
LENGTHS = torch.tensor([9, 4, 7])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(lengths: Tensor = LENGTHS, seed: int = 0) -> Tensor:
    return torch.randint(V, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(seed))


def knows(answer: Tensor) -> WholeDenoise:
    """A denoiser that is sure of the answer whatever it sees."""
    return lambda canvas, previous: 30.0 * F.one_hot(answer[:, : canvas.shape[1]], V)


def doubts(lengths: Tensor, sharpness: float = 2.0) -> WholeDenoise:
    """A denoiser whose every place depends on all real places of its row, and on what was believed before."""
    table, places, belief = randn(V, 8).double(), randn(32, 8, seed=1).double(), randn(V, V, seed=2).double()

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        real = (torch.arange(canvas.shape[1]) < lengths[:, None])[..., None]
        seen = table[canvas] * real
        hidden = seen + seen.sum(1, keepdim=True) / lengths[:, None, None] + places[: canvas.shape[1]]
        logits = sharpness * hidden @ table.T
        return logits if previous is None else logits + 3 * previous.double().softmax(-1) @ belief

    return denoise


def run(
    denoise: WholeDenoise,
    canvas: Tensor,
    lengths: Tensor = LENGTHS,
    *,
    end: int = NO_END,
    renew: WholeRenew | None = None,
    **options: object,
) -> list[Draft]:
    """Denoisers and renewals of these tests answer for the whole batch; here they are asked about some rows of it."""
    whole = [len(lengths), canvas.shape[1]]

    def spread(part: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(len(lengths), *part.shape[1:], dtype=part.dtype).index_copy(0, rows, part)

    def some(canvas: Tensor, previous: Tensor | None, rows: Tensor) -> Tensor:
        assert [len(rows), canvas.shape[1]] == [len(canvas), whole[1]]
        return denoise(spread(canvas, rows), None if previous is None else spread(previous, rows))[rows]

    def anew(step: Step) -> Tensor:
        assert renew is not None
        return renew(spread(step.drawn, step.rows), spread(step.accepted, step.rows))[step.rows]

    made = SamplingOptions(**options)  # type: ignore[arg-type]
    return list(sample(some, canvas, lengths, made, end=end, renew=None if renew is None else anew))


def real_tokens(drafts: list[Draft], lengths: Tensor = LENGTHS) -> list[list[list[int]]]:
    return [[row[:n] for row, n in zip(d.tokens.tolist(), lengths.tolist(), strict=True)] for d in drafts]


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("accept", ["entropy", "all"])
def test_a_denoiser_that_knows_is_believed_from_any_start(steps: int, accept: str) -> None:
    answer = noise(seed=5)
    for seed in range(3):
        drafts = run(knows(answer), noise(seed=seed), steps=steps, accept=accept, temperature=1.5, seed=seed)
        assert torch.equal(drafts[-1].tokens, answer)
        assert drafts[-1].entropy.max() < 1e-6
        assert drafts[-1].log_probability.min() > -1e-6
        assert len(drafts) == min(steps, 2), "the second step sees that nothing changed, and stops"


def test_the_seed_decides_all() -> None:
    first, again, other = (run(doubts(LENGTHS), noise(), seed=s, temperature=1.0) for s in (3, 3, 4))
    assert real_tokens(first) == real_tokens(again)
    assert real_tokens(first) != real_tokens(other)


def test_the_most_likely_everywhere_needs_no_dice() -> None:
    calm: dict[str, object] = {"temperature": 0.0, "final_temperature": 0.0, "accept": "all"}
    assert real_tokens(run(doubts(LENGTHS), noise(), seed=1, **calm)) == real_tokens(
        run(doubts(LENGTHS), noise(), seed=2, **calm)
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("end", [NO_END, 3])
@pytest.mark.parametrize("accept", ["prefix", "entropy", "threshold", "all"])
@pytest.mark.parametrize("row", range(3))
def test_a_row_of_a_batch_equals_the_row_alone(row: int, accept: str, end: int, temperature: float) -> None:
    options: dict[str, Any] = {"accept": accept, "stop_entropy": 0.5, "end": end, "temperature": temperature}
    together = run(doubts(LENGTHS), noise(), **options)
    only = LENGTHS[row : row + 1]
    size = int(only)
    alone = run(doubts(only), noise()[row : row + 1, :size], only, **options)
    assert len(alone) <= len(together), "a row alone may stop before the batch does"
    assert len(alone) == len(together) or alone[-1].finished.all()
    for number, draft in enumerate(together):
        own = alone[min(number, len(alone) - 1)]
        assert torch.equal(draft.tokens[row, :size], own.tokens[0])
        assert torch.equal(draft.finished[row], own.finished[0])
        torch.testing.assert_close(draft.entropy[row, :size], own.entropy[0])
        torch.testing.assert_close(draft.log_probability[row, :size], own.log_probability[0])
        if number < len(alone):
            assert torch.equal(draft.accepted[row, :size], own.accepted[0])
        assert not draft.accepted[row, size:].any(), "padding is never accepted"


def settling(quick: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Rows where ``quick`` say the same twice and then something else; the others change their mind every time."""
    calls = iter(range(100))

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        step = next(calls)
        word = torch.where(quick, 1 if step < 2 else 5, 2 + step % 2)[:, None].expand(canvas.shape)
        return 30.0 * F.one_hot(word, V)

    return denoise


@pytest.mark.parametrize("accept", ["entropy", "all"])
def test_a_finished_row_keeps_its_draft_while_others_go_on(accept: str) -> None:
    drafts = run(settling(torch.tensor([True, False, True])), noise(), steps=6, accept=accept)
    assert [d.step for d in drafts] == [1, 2, 3, 4, 5, 6]
    assert [d.finished.tolist() for d in drafts] == [[False] * 3, *[[True, False, True]] * 5]
    assert all((d.tokens[[0, 2]] == 1).all() for d in drafts), "what it would say later is not asked"
    assert [int(d.tokens[1, 0]) for d in drafts] == [2, 3, 2, 3, 2, 3]


@pytest.mark.parametrize("accept", ["entropy", "all"])
def test_when_all_are_finished_no_more_steps_follow(accept: str) -> None:
    drafts = run(settling(torch.tensor([True, True, True])), noise(), steps=6, accept=accept)
    assert len(drafts) == 2
    assert drafts[-1].finished.all()


def test_a_row_that_is_sure_but_changes_or_stays_but_doubts_is_not_finished() -> None:
    assert not run(settling(torch.tensor([False] * 3)), noise(), steps=4, accept="entropy")[-1].finished.any()
    flat = run(lambda canvas, previous: torch.zeros(*canvas.shape, V), noise(), steps=4, accept="entropy")
    assert not flat[-1].finished.any()
    assert torch.allclose(flat[-1].entropy, torch.tensor(float(V)).log())


def test_accepted_places_are_seen_and_the_others_are_drawn_anew() -> None:
    seen: list[Tensor] = []
    answer = noise(seed=5)

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        seen.append(canvas)
        sure = (torch.arange(canvas.shape[1]) % 2 == 0)[None, :, None]
        return 30.0 * F.one_hot(answer, V) * sure  # odd places: no idea

    drafts = run(denoise, noise(), steps=8, accept="entropy", entropy_bound=0.0)
    assert all((d.accepted.sum(1) == 1).all() for d in drafts), "bound 0: the surest place and no other"
    even = torch.arange(9) % 2 == 0
    for draft, canvas in zip(drafts, seen[1:], strict=False):
        assert torch.equal(canvas[draft.accepted], answer[draft.accepted])
    odd_tokens = torch.stack(seen[1:])[:, 0, ~even]
    assert (odd_tokens[1:] != odd_tokens[:-1]).any(), "places without acceptance change from step to step"


CHANGES = {
    "steps": (3, 5),
    "temperature": (0.0, 3.0),
    "final_temperature": (0.0, 3.0),
    "entropy_bound": (0.0, 5.0),
    "accept": ("entropy", "all", "prefix", "threshold"),
    "stop_entropy": (0.0, 3.0),
    "self_conditioning": (True, False),
    "seed": (0, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_something(name: str) -> None:
    base: dict[str, object] = {"steps": 5, "temperature": 1.0, "accept": "entropy", "entropy_bound": 1.0}
    base["self_conditioning"] = True
    sharpness = 4.0 if name == "stop_entropy" else 2.0
    results = [
        real_tokens(run(doubts(LENGTHS, sharpness), noise(), **(base | {name: value}))) for value in CHANGES[name]
    ]
    assert all(one != other for one, other in itertools.combinations(results, 2))


def test_no_option_is_forgotten() -> None:
    elsewhere = {"start", "seed_noise", "ctc_weight", "votes"}  # test_decode.py
    elsewhere |= {"confidence", "joint_weight"}  # test_joint.py
    elsewhere |= {"caution", "beam", "letter_weight", "letter_bonus"}  # test_comparisons.py
    elsewhere |= {"threshold", "position_bias"}  # test_acceptance.py
    elsewhere |= {"guidance", "merge", "alternatives"}  # test_asking.py, test_ballots.py
    elsewhere |= {"ahead"}  # test_looking_ahead.py
    assert {f.name for f in fields(SamplingOptions)} == CHANGES.keys() | elsewhere


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("start", "silence"),
        ("votes", 0),
        ("merge", "quarrel"),
        ("alternatives", 2),
        ("alternatives", -1),
        ("confidence", -0.1),
        ("confidence", 1.1),
        ("joint_weight", -1.0),
        ("caution", -0.1),
        ("caution", float("nan")),
        ("beam", -1),
        ("letter_weight", float("nan")),
        ("letter_bonus", float("nan")),
        ("accept", "some"),
        ("seed_noise", -0.1),
        ("seed_noise", 1.1),
        ("seed_noise", float("nan")),
        ("threshold", 1.5),
        ("position_bias", -0.1),
        ("guidance", -1.0),
        ("temperature", -1.0),
        ("final_temperature", float("nan")),
        ("entropy_bound", float("inf")),
        ("stop_entropy", -1e-9),
        ("ctc_weight", -0.5),
    ],
)
def test_a_bad_value_fails_at_construction_and_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def test_temperature_is_a_straight_line() -> None:
    options = SamplingOptions(steps=5, temperature=1.0, final_temperature=0.2)
    assert [options.temperature_at(i) for i in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert SamplingOptions(steps=1, temperature=1.0, final_temperature=0.2).temperature_at(0) == pytest.approx(0.2)


def test_fresh_rows_draw_from_their_own_dice_only() -> None:
    def dice() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in (1, 2)]

    wide, narrow = (fresh_rows([n, 4], 9, dice(), vocabulary=V) for n in (9, 2))
    assert torch.equal(wide[1], narrow[1])
    assert torch.equal(wide[0, :2], narrow[0, :2])
    assert wide.max() < V
    assert wide[1, 4:].sum() == 0


END = 0
small_rows = st.integers(1, 7).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 3), min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(small_rows)
def test_behind_the_first_end_there_is_nothing_but_ends(rows: list[list[int]]) -> None:
    expected = [row[: row.index(END)] + [END] * (len(row) - row.index(END)) if END in row else row for row in rows]
    once = closed(torch.tensor(rows), END)
    assert once.tolist() == expected
    assert torch.equal(closed(once, END), once)
    assert closed(torch.tensor(rows), NO_END).tolist() == rows


@given(small_rows, st.data())
def test_what_is_unchanged_so_far_ends_with_the_first_change(rows: list[list[int]], data: st.DataObject) -> None:
    width = len(rows[0])
    others = [data.draw(st.lists(st.integers(0, 3), min_size=width, max_size=width)) for _ in rows]
    got = unchanged_so_far(torch.tensor(rows) == torch.tensor(others)).tolist()
    assert got == [
        [row[:place] == other[:place] for place in range(width)] for row, other in zip(rows, others, strict=True)
    ]


@pytest.mark.parametrize("accept", ["prefix", "entropy", "threshold", "all"])
def test_no_draft_goes_on_behind_its_end(accept: str) -> None:
    ends = 0
    for seed in range(5):
        for draft in run(
            doubts(LENGTHS), noise(seed=seed), end=END, accept=accept, renew=lambda drawn, *_: closed(drawn, END)
        ):
            real = torch.arange(9) < LENGTHS[:, None]
            assert torch.equal((draft.tokens * real), closed(draft.tokens, END) * real)
            ends += int((draft.tokens == END).any())
    assert ends, "the law was put to the test"


def follows(answer: Tensor) -> WholeDenoise:
    """A denoiser that knows how the right start goes on, and is misled by a wrong one."""

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        truth = answer[:, : canvas.shape[1]]
        misled = (canvas * torch.arange(1, canvas.shape[1] + 1)).cumsum(1) % V
        return 30.0 * F.one_hot(torch.where(unchanged_so_far(canvas == truth), truth, misled), V)

    return denoise


@given(st.integers(0, 10**6), st.sampled_from(["noise", "once more", "the rest of it"]))
def test_who_knows_how_the_start_goes_on_gets_to_the_end_from_any_start(seed: int, renewal: str) -> None:
    """And what was confirmed once is never changed."""
    answer, start = closed(noise(seed=seed), END), closed(noise(seed=seed + 1), END)
    renew: dict[str, WholeRenew | None] = {
        "noise": None,
        "once more": lambda drawn, *_: closed(drawn, END),
        "the rest of it": lambda *_: start.roll(1, 1),
    }
    drafts = run(follows(answer), start, steps=12, end=END, renew=renew[renewal])
    real = torch.arange(9) < LENGTHS[:, None]
    assert drafts[-1].finished.all()
    assert torch.equal(drafts[-1].tokens[real], answer[real])
    for draft, after in itertools.pairwise(drafts):
        assert draft.accepted[:, 0].all(), "a place is won at every step"
        assert torch.equal(draft.tokens[draft.accepted], answer[draft.accepted])
        going = ~after.finished[:, None] & draft.accepted
        assert after.accepted[going].all()
        assert torch.equal(after.tokens[draft.accepted], draft.tokens[draft.accepted])


def test_a_right_start_is_confirmed_at_once() -> None:
    answer = closed(noise(seed=5), END)
    drafts = run(follows(answer), answer, end=END, renew=lambda drawn, *_: closed(drawn, END))
    assert all(d.accepted.equal(torch.arange(9) < LENGTHS[:, None]) for d in drafts)
    assert [d.finished.all().item() for d in drafts] == [False, True], "the second look sees that nothing changed"


@pytest.mark.parametrize("accept", ["prefix", "entropy", "all"])
def test_renew_is_asked_for_what_was_not_accepted(accept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "WORTHWHILE", 2.0)  # no row leaves
    seen: list[Tensor] = []
    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    plain = doubts(LENGTHS)

    previous: list[Tensor | None] = []

    def denoise(canvas: Tensor, before: Tensor | None) -> Tensor:
        seen.append(canvas.clone())
        previous.append(before)
        return plain(canvas, before)

    def renew(drawn: Tensor, accepted: Tensor) -> Tensor:
        fresh = noise(seed=100 + len(asked))
        asked.append((drawn.clone(), accepted.clone(), fresh))
        return fresh

    drafts = run(denoise, noise(), steps=4, accept=accept, renew=renew, stop_entropy=0.0, self_conditioning=True)
    assert len(drafts) == len(asked) == 4
    real = torch.arange(9) < LENGTHS[:, None]
    for draft, (chosen, accepted, fresh), canvas in zip(drafts, asked, seen[1:], strict=False):
        assert torch.equal(accepted, draft.accepted)
        assert torch.equal(canvas, torch.where(accepted, chosen, fresh))
        if accept == "prefix":
            going = real & ~draft.finished[:, None]
            assert torch.equal(draft.tokens[going], canvas[going]), "the draft shows the text as it goes on"
    assert any((real & ~accepted).any() for _, accepted, _ in asked) == (accept != "all")


def test_a_row_that_confirmed_itself_is_held_while_others_go_on() -> None:
    """With prefix acceptance: row 0 stays as it is for two steps, row 1 never does."""
    lengths, calls = torch.tensor([4, 4]), itertools.count(1)

    def denoise(canvas: Tensor, previous: Tensor | None) -> Tensor:
        step = next(calls)
        words = torch.tensor([1 if step < 3 else 5, 2 + step % 2])
        return 30.0 * F.one_hot(words[:, None].expand(canvas.shape), V)

    start = torch.tensor([[1] * 4, [7] * 4])
    drafts = run(denoise, start, lengths, steps=5, renew=lambda drawn, *_: closed(drawn, END))
    assert [d.finished.tolist() for d in drafts] == [[False, False], *[[True, False]] * 4]
    assert all((d.tokens[0] == 1).all() for d in drafts)
    assert all((d.log_probability[0] > -1e-6).all() for d in drafts)
