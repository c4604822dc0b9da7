"""What is recorded once and replayed says what it would have said. On the CPU a fake recorder stands for CUDA graphs."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_gemma import speech_of, tiny_network, tokens_of
from torch import Tensor, nn

from diffasr.model import replay
from diffasr.model.gemma import GemmaNetwork
from diffasr.model.network import Cache
from diffasr.model.replay import Recording, Replays, first_cause

LANGUAGES = torch.tensor([0, 3, 1])


class Tally:
    """Records by doing the work again, where the results of the first time lie; counts both."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
        assert device.type == "cpu"
        self.recorded += 1
        results = [torch.full_like(result, torch.nan) for result in work()]  # a graph computes nothing yet

        def again() -> None:
            self.replayed += 1
            for place, result in zip(results, work(), strict=True):
                place.copy_(result)

        return again, results


def watched(network: GemmaNetwork) -> Tally:
    """Let a network on the CPU be recorded, and count it."""
    tally = Tally()
    network.replays = Replays(lambda: tally, "cpu")
    return tally


@pytest.fixture
def network() -> GemmaNetwork:
    made = tiny_network(lora=True).requires_grad_(False)
    made.backbone.set_experts_implementation("batched_mm")
    return made


def prefilled(network: GemmaNetwork, lengths: list[int], shift: int = 0) -> Cache:
    return network.prefill(speech_of(lengths), (LANGUAGES[: len(lengths)] + shift) % 6)


def said(network: GemmaNetwork, cache: Cache, lengths: list[int], shift: int = 0, **known: Any) -> Tensor:
    canvas = (tokens_of(len(lengths), max(lengths)) + shift) % 40
    return network.denoise(canvas, cache, lengths=torch.tensor(lengths), **known)


@torch.inference_mode()
def test_a_replayed_step_says_the_same(network: GemmaNetwork) -> None:
    plain = copy.deepcopy(network)
    tally = watched(network)
    caches = [prefilled(network, [40, 9, 25], shift) for shift in (0, 2)]
    for turn, (which, lengths) in enumerate([(0, [8, 5, 3]), (0, [8, 8, 2]), (1, [8, 8, 8]), (0, [7, 8, 8])]):
        found, wanted = (said(n, caches[which], lengths, turn) for n in (network, plain))
        torch.testing.assert_close(found, wanted)
        assert (tally.recorded, tally.replayed) == (min(turn, 1), turn), "the first time plainly, then from the tape"


@torch.inference_mode()
def test_rows_are_filled_up_and_share_a_recording(network: GemmaNetwork) -> None:
    plain = copy.deepcopy(network)
    tally = watched(network)
    said(network, prefilled(network, [40, 9, 25, 16][:3]), [8, 5, 3])
    whole = prefilled(network, [40, 9, 25])
    said(network, whole, [8, 8, 8])  # 3 rows of 4
    two = network.select(whole, torch.tensor([2, 1]))
    for _ in range(2):
        torch.testing.assert_close(said(network, two, [8, 6]), said(plain, two, [8, 6]))
    assert tally.recorded == 2, "of 4 rows and of 2"
    torch.testing.assert_close(said(network, whole, [8, 1, 8]), said(plain, whole, [8, 1, 8]))
    assert tally.recorded == 2


@torch.inference_mode()
def test_with_nothing_hidden_there_is_no_mask(network: GemmaNetwork) -> None:
    plain = copy.deepcopy(network)
    tally = watched(network)
    cache = prefilled(network, [40])
    for turn, size in enumerate([8, 8, 8]):
        found = said(network, cache, [size], turn)
        assert torch.equal(found, said(plain, cache, [size], turn))
    (tape,) = network.replays._tapes.values()
    assert tape.given[2:] == [None, None] and tally.replayed == 2


@torch.inference_mode()
def test_results_are_the_callers_own(network: GemmaNetwork) -> None:
    watched(network)
    cache = prefilled(network, [40])
    _, second = (said(network, cache, [8]) for _ in range(2))
    kept = second.clone()
    said(network, cache, [8], 5)
    assert torch.equal(second, kept)


def test_gradients_trained_weights_and_beliefs_are_left_alone(network: GemmaNetwork) -> None:
    tally = watched(network)
    with torch.no_grad():
        cache = prefilled(network, [40])
        for _ in range(3):
            said(network, cache, [8])
    with torch.inference_mode():
        cache = prefilled(network, [40])
        for _ in range(3):
            said(network, cache, [8], previous=torch.zeros(1, 8, 40))
        network.backbone.set_experts_implementation("grouped_mm")  # in float32 it asks for numbers
        for _ in range(3):
            said(network, cache, [8])
        network.backbone.set_experts_implementation("batched_mm")
        network.backbone.lm_head.weight.requires_grad_(True)
        cache = prefilled(network, [40])
        for _ in range(3):
            said(network, cache, [8])
    assert tally.recorded == 0


@torch.inference_mode()
def test_moved_weights_are_recorded_anew(network: GemmaNetwork) -> None:
    tally = watched(network)
    for _ in range(2):
        said(network, prefilled(network, [40]), [8])
    for weight in network.backbone.parameters():
        weight.data = weight.data.clone()
    plain = copy.deepcopy(network)
    plain.replays.is_on = False
    for turn in range(3):
        cache = prefilled(network, [40])
        assert torch.equal(said(network, cache, [8], turn), said(plain, cache, [8], turn))
    assert tally.recorded == 2


def test_a_copy_has_recorded_nothing(network: GemmaNetwork) -> None:
    with torch.inference_mode():
        watched(network)
        for _ in range(2):
            said(network, prefilled(network, [40]), [8])
        assert network.replays._tapes and not copy.deepcopy(network).replays._tapes


class Sums:
    """Work of which the calls are counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, held: Any, given: Any) -> list[Tensor]:
        self.calls += 1
        return [given[0] + held[0].sum(1, keepdim=True)]


class Owner:
    pass


def test_few_are_kept_and_large_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "TAPES", 2)
    tally = Tally()
    replays = Replays(lambda: tally, "cpu")
    owner, held, work = Owner(), [torch.ones(1, 2)], Sums()
    for size in (3, 3, 4, 4, 5, 5, 3, 4, 3):
        (found,) = replays(work, owner, held, (torch.ones(1, size),))
        assert torch.equal(found, torch.full((1, size), 3.0))
    assert len(replays._tapes) == 2 and tally.recorded == 5, "3 and 4 were let go and recorded again"
    assert len(replays._shelves) == 1, "all sizes read what is held from one place"
    replays.places = 8
    for _ in range(3):
        replays(work, owner, [torch.ones(3, 2)], (torch.ones(3, 3),))
    assert tally.recorded == 5, "three rows take four, times three is more than 8"
    replays.forget()
    gc.collect()
    assert not replays._tapes and not replays._shelves


def test_what_is_held_is_copied_once_for_an_owner() -> None:
    replays = Replays(Tally, "cpu")
    owner, other, held = Owner(), Owner(), [torch.ones(1, 2)]
    given = (torch.zeros(1, 1),)
    for _ in range(2):
        replays(Sums(), owner, held, given)
    held[0].fill_(5.0)
    assert replays(Sums(), owner, held, given)[0].item() == 2
    assert replays(Sums(), other, held, given)[0].item() == 10


def test_what_cannot_be_recorded_is_run_and_told_once(network: GemmaNetwork) -> None:
    def refuse(work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
        try:
            raise ValueError("operation not permitted when stream is capturing\nand more")
        except ValueError:
            raise RuntimeError("failed due to a previous error") from None

    plain = copy.deepcopy(network)
    network.replays = Replays(lambda: refuse, "cpu")
    with torch.inference_mode():
        cache = prefilled(network, [40])
        wanted = said(plain, cache, [8])
        assert torch.equal(said(network, cache, [8]), wanted)
        with pytest.warns(
            UserWarning, match="ValueError: operation not permitted when stream is capturing, in .*raise"
        ):
            assert torch.equal(said(network, cache, [8]), wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                assert torch.equal(said(network, cache, [8]), wanted)
    assert not network.replays.is_on


def test_the_first_of_several_errors_is_told() -> None:
    try:
        try:
            torch.ones(2)[5]
        except IndexError as error:
            raise RuntimeError("later") from error
    except RuntimeError as error:
        told = first_cause(error)
    assert told.startswith("IndexError: index 5 is out of bounds") and told.endswith("torch.ones(2)[5]")


@pytest.mark.parametrize("is_frozen", [True, False])
def test_weights_on_one_device_and_frozen(is_frozen: bool) -> None:
    layer = nn.Linear(2, 2).requires_grad_(not is_frozen)
    with torch.inference_mode():
        assert Replays(Tally, "cpu").serves(Owner(), layer) == is_frozen
        assert not Replays(Tally).serves(Owner(), layer), "a CPU is no CUDA device"
        layer.bias = nn.Parameter(torch.zeros(2, device="meta"), requires_grad=False)
        assert not Replays(Tally, "cpu").serves(Owner(), layer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("default")
@torch.inference_mode()
def test_a_graph_says_the_same(network: GemmaNetwork) -> None:
    card = torch.device("cuda")
    network.backbone.set_experts_implementation("grouped_mm")
    network.bfloat16().to(card)
    speech = speech_of([40, 9, 25])
    speech = type(speech)(frames=speech.frames.to(card, torch.bfloat16), lengths=speech.lengths.to(card))
    cache = network.prefill(speech, LANGUAGES.to(card))
    one = network.select(cache, torch.tensor([1], device=card))
    for turn in range(4):
        for wanted, lengths in ((cache, [8, 5, 3]), (cache, [16, 16, 16]), (one, [8])):
            canvas = ((tokens_of(len(lengths), max(lengths)) + turn) % 40).to(card)
            network.replays.is_on = False
            plain = network.denoise(canvas, wanted, lengths=torch.tensor(lengths, device=card))
            network.replays.is_on = True
            found = network.denoise(canvas, wanted, lengths=torch.tensor(lengths, device=card))
            torch.testing.assert_close(found, plain, rtol=2e-2, atol=2e-2)
            assert network.replays.is_on
    assert len(network.replays._tapes) == 3
