"""Laws of what a step asks the network: about whom, with what, and that nothing of it depends on neighbours."""

from typing import Any

import pytest
import torch
from conftest import random_model, random_speech, row_alone, wake
from test_decode import scripted
from torch import Tensor

from diffasr.asking import Asking
from diffasr.decodable import decodable
from diffasr.decode import decode
from diffasr.diffusion import sampler
from diffasr.diffusion.fuse import guided
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError

MODEL = wake(random_model())
KNOWN = [0, 3, 5]


def asked(weight: float, rows: list[Tensor], *, previous: Tensor | None = None) -> list[Tensor]:
    """The answers to a row of questions about one canvas, each about some rows of it."""
    network = decodable(MODEL.network)
    ask = Asking(network, network.prefill(random_speech([60, 31, 44]), KNOWN), LENGTHS.tolist(), [weight] * 3)
    return [ask(CANVAS[some], None if previous is None else previous[some], some, HINTS[some]) for some in rows]


LENGTHS = torch.tensor([8, 5, 7])
CANVAS = torch.randint(40, (3, 8), generator=torch.Generator().manual_seed(1))
HINTS = CANVAS % 9 - 1
EVERY = torch.arange(3)


def plain(**more: Any) -> Tensor:
    cache = MODEL.network.prefill(random_speech([60, 31, 44]), torch.tensor(KNOWN))
    return MODEL.network.denoise(CANVAS, cache, lengths=LENGTHS, **{"hints": HINTS} | more)


def without(**more: Any) -> Tensor:
    cache = MODEL.network.prefill(random_speech([60, 31, 44]), torch.tensor(KNOWN))
    deaf = MODEL.network.without_audio(cache, torch.tensor([True] * 3))
    return MODEL.network.denoise(CANVAS, deaf, lengths=LENGTHS, **more)


@pytest.mark.parametrize("is_conditioned", [False, True])
def test_an_answer_is_the_network_s_guided(is_conditioned: bool) -> None:
    previous = torch.randn(3, 8, 40) if is_conditioned else None
    known: dict[str, Any] = {"previous": previous}
    real = (torch.arange(8) < LENGTHS[:, None])[..., None]

    def check(got: Tensor, want: Tensor) -> None:
        torch.testing.assert_close(got * real, want * real)

    check(asked(0.0, [EVERY], previous=previous)[0], plain(**known))
    (pushed,) = asked(0.7, [EVERY], previous=previous)
    check(pushed, guided(plain(**known), without(**known), 0.7))
    assert ((pushed - plain(**known)) * real).abs().max() > 0.1


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_rows_that_left_are_forgotten_and_the_others_hear_what_they_heard(guidance: float) -> None:
    first, second, third = asked(guidance, [EVERY, torch.tensor([0, 2]), torch.tensor([2])])
    for row, size in ((0, 8), (2, 7)):
        torch.testing.assert_close(second[row // 2, :size], first[row, :size])
    torch.testing.assert_close(third[0, :7], first[2, :7])


def test_a_batch_costs_what_its_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model rows are counted: a row that is right from the start is asked about twice, whoever is beside it."""
    answers, hears = ["a dog", "them and us", "no"], ["a dog", "tm d u", "no"]
    together, script = scripted(answers, hears, steps=12)
    alone = [scripted([a], [h], steps=12) for a, h in zip(answers, hears, strict=True)]
    cost = sum(len(call["canvas"]) for call in script.calls)
    assert cost == sum(len(call["canvas"]) for _, one in alone for call in one.calls) == sum(r.steps for r in together)
    monkeypatch.setattr(sampler, "WORTHWHILE", 2.0)
    stayed, dear = scripted(answers, hears, steps=12)
    assert sum(len(call["canvas"]) for call in dear.calls) == 3 * len(dear.calls) > cost
    assert stayed == together


LAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a sample": {"start": "sample"},
    "a threshold": {"accept": "threshold", "threshold": 0.2},
    "biased": {"accept": "entropy", "entropy_bound": 2.0, "position_bias": 1.0},
    "guided": {"guidance": 0.5, "accept": "all"},
    "fused": {"ctc_weight": 0.5, "self_conditioning": True, "accept": "all"},
    "votes": {"votes": 3, "start": "sample", "temperature": 0.5},
    "least risk": {"votes": 4, "start": "noise", "accept": "entropy", "merge": "mbr", "alternatives": 3},
}


def made(name: str, **more: Any) -> SamplingOptions:
    return SamplingOptions(**(more | {"stop_entropy": 2.9} | LAWS[name]))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("lengths", [[60, 9, 33], [17, 90], [40, 41, 12, 12]], ids=str)
def test_neighbours_change_nothing(name: str, lengths: list[int]) -> None:
    options = made(name, steps=4, seed=len(lengths))
    speech, known = random_speech(lengths, seed=len(lengths)), [*range(-1, len(lengths) - 1)]
    together = decode(MODEL, speech, known, options)
    for row in range(len(lengths)):
        (alone,) = decode(MODEL, row_alone(speech, row), known[row : row + 1], options)
        mine = together[row]
        assert (alone.text, alone.language, alone.steps) == (mine.text, mine.language, mine.steps)
        assert alone.avg_logprob == pytest.approx(mine.avg_logprob, abs=1e-3)
        assert [a.text for a in alone.alternatives] == [a.text for a in mine.alternatives]


@pytest.mark.parametrize("name", LAWS)
def test_rows_that_leave_change_no_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = made(name, steps=6)
    speech = random_speech([60, 31, 44, 18, 75], seed=4)
    texts = []
    for worthwhile in (1e-9, 0.25, 2.0):
        monkeypatch.setattr(sampler, "WORTHWHILE", worthwhile)
        texts.append([(d.text, d.steps) for d in decode(MODEL, speech, None, options)])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    "change",
    [{"start": "sample"}, {"accept": "threshold"}, {"accept": "threshold", "threshold": 0.05}, {"guidance": 2.0},
     {"ctc_weight": 2.0}],
    ids=str,
)  # fmt: skip
def test_each_option_changes_what_is_written(change: dict[str, Any]) -> None:
    speech = random_speech([60, 31, 44], seed=2)
    base: dict[str, Any] = {"steps": 2, "accept": "threshold" if "threshold" in change else "all"}
    texts = [[d.text for d in decode(MODEL, speech, KNOWN, SamplingOptions(**o))] for o in (base, base | change)]
    assert texts[0] != texts[1]


def test_a_backbone_that_always_hears_says_so() -> None:
    from test_gemma import tiny_network

    cache = MODEL.network.prefill(random_speech([20]), None)
    with pytest.raises(OptionError, match="gemma backbone can't do"):
        tiny_network().without_audio(cache, torch.tensor([True]))
