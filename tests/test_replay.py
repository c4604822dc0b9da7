"""What is recorded once and replayed says what it would have said. A fake recorder stands for CUDA graphs."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_gemma import ROOMY, TIGHT, keys_and_values, speech_of, tiny_network, tokens_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffasr.model import replay
from diffasr.model.gemma import GemmaNetwork
from diffasr.model.network import Cache, Speech
from diffasr.model.replay import Recording, Replays, first_cause

LANGUAGES = torch.tensor([0, 3, 1, 2])


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
        told = (tally.recorded - 2, tally.replayed - 2)  # the second prefill has two passes
        assert told == (min(turn, 1), turn), "the first time plainly, then from the tape"


@pytest.mark.parametrize("window", [ROOMY, TIGHT])
@pytest.mark.parametrize("is_known", [True, False])
@torch.inference_mode()
def test_a_replayed_prefill_makes_the_same_cache(window: int, is_known: bool) -> None:
    network = tiny_network(window, lora=True).requires_grad_(False)
    network.backbone.set_experts_implementation("batched_mm")
    plain = copy.deepcopy(network)
    tally = watched(network)
    languages = LANGUAGES[:3] if is_known else None
    for lengths in ([40, 9, 25], [40, 40, 40], [16, 40, 8], [40, 40, 16], [40, 40, 40]):
        found, wanted = (n.prefill(speech_of(lengths), languages) for n in (network, plain))
        torch.testing.assert_close(found.language_logits, wanted.language_logits)
        torch.testing.assert_close(found.memory.hidden, wanted.memory.hidden)
        for a, b in zip(keys_and_values(found), keys_and_values(wanted), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(said(network, found, [8, 8, 8]), said(plain, wanted, [8, 8, 8]))
        text = tokens_of(3, 5)
        torch.testing.assert_close(network.ar_logits(text, found), plain.ar_logits(text, wanted))
    assert tally.recorded >= 3 and tally.replayed >= 6, "the prompt with a mask and without, the language, the steps"
    layers = [c.memory.keys_values.layers for c in (found, wanted)]
    for mine, theirs in zip(*layers, strict=True):
        assert vars(mine).keys() == vars(theirs).keys() and mine.get_seq_length() == theirs.get_seq_length()


@torch.inference_mode()
def test_rows_are_filled_up_and_share_a_recording(network: GemmaNetwork) -> None:
    plain = copy.deepcopy(network)
    tally = watched(network)
    said(network, prefilled(network, [40, 9, 25, 16]), [8, 5, 3, 8])
    whole = prefilled(network, [40, 9, 25])
    said(network, whole, [8, 8, 8])  # 3 rows of 4
    assert tally.recorded == 3, "two passes of prefill and a step"
    two = network.select(whole, torch.tensor([2, 1]))
    for _ in range(2):
        torch.testing.assert_close(said(network, two, [8, 6]), said(plain, two, [8, 6]))
    assert tally.recorded == 4, "a step of two rows"
    torch.testing.assert_close(said(network, whole, [8, 1, 8]), said(plain, whole, [8, 1, 8]))
    assert tally.recorded == 4


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
    assert tally.recorded == 6, "three passes, twice"


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


class Strict(TorchDispatchMode):
    """Lets nothing pass that is not on the meta device, which has no numbers to ask for and none to copy to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        found = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)]
        assert all(value.device.type == "meta" for value in found), f"{func} takes or gives a number of the host"
        return out


@torch.inference_mode()
def test_what_is_recorded_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA would demand: no number is read, none comes from the host."""
    network = tiny_network(lora=True).requires_grad_(False).bfloat16()
    network.backbone.set_experts_implementation("grouped_mm")
    network.to("meta")
    recorded: list[int] = []
    is_inside = False

    def record(work: Callable[[], list[Tensor]], device: torch.device) -> Recording:
        nonlocal is_inside
        is_inside = True
        with Strict():
            results = work()
        is_inside = False
        recorded.append(len(results))
        return lambda: None, results

    def answer(_: Tensor, *args: Any) -> bool:
        assert not is_inside, "a number is asked for"
        return False

    monkeypatch.setattr(Tensor, "all", answer)
    monkeypatch.setattr(Tensor, "__bool__", answer)
    network.replays = Replays(lambda: record, "meta")
    frames, sizes = torch.randn(2, 40, 16, device="meta", dtype=torch.bfloat16), torch.full((2,), 40, device="meta")
    canvas, lengths = torch.zeros(2, 8, dtype=torch.long, device="meta"), torch.full((2,), 8, device="meta")
    for _ in range(2):
        cache = network.prefill(Speech(frames=frames, lengths=sizes), None)
        network.denoise(canvas, cache, lengths=lengths)
    assert recorded == [7, 7, 1], "prompt and language with the keys and values of three layers, and a step"


def near(found: Tensor, wanted: Tensor) -> None:
    """As near as bfloat16 and other numbers of rows allow."""
    assert (found.float() - wanted.float()).norm() < 0.05 * wanted.float().norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("default")
@torch.inference_mode()
def test_a_graph_says_the_same(network: GemmaNetwork) -> None:
    card = torch.device("cuda")
    network.backbone.set_experts_implementation("grouped_mm")
    network.bfloat16().to(card)
    speech = speech_of([40, 9, 25])
    speech = Speech(frames=speech.frames.to(card, torch.bfloat16), lengths=speech.lengths.to(card))
    network.replays.is_on = False
    wanted = network.prefill(speech, LANGUAGES[:3].to(card))
    network.replays.is_on = True
    for _ in range(3):
        cache = network.prefill(speech, LANGUAGES[:3].to(card))
        for a, b in zip(keys_and_values(cache), keys_and_values(wanted), strict=True):
            near(a, b)
    one = network.select(cache, torch.tensor([1], device=card))
    for turn in range(4):
        for which, lengths in ((cache, [8, 5, 3]), (cache, [16, 16, 16]), (one, [8])):
            canvas = ((tokens_of(len(lengths), max(lengths)) + turn) % 40).to(card)
            network.replays.is_on = False
            plain = network.denoise(canvas, which, lengths=torch.tensor(lengths, device=card))
            network.replays.is_on = True
            found = network.denoise(canvas, which, lengths=torch.tensor(lengths, device=card))
            near(found, plain)
            assert network.replays.is_on
    assert len(network.replays._tapes) == 5, "two passes of prefill and three steps"
