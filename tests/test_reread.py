"""What is read again from where it changed is what is read as a whole, whoever else is in the batch."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import random_model, random_speech, tiny_tokenizer, wake
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffasr.asking import Again, Asking
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache
from diffasr.model.whisper import BLIND, HANDICAP, PACE, WhisperNetwork

KNOWN = torch.tensor([0, 3, 5])
END = tiny_tokenizer().end
texts = st.lists(st.integers(8, 20), max_size=9)


def blind(model: Model) -> WhisperNetwork:
    """A copy that sees no later place and is told nothing but the text."""
    network = copy.deepcopy(model.network)
    network.decoder.future.data.fill_((HANDICAP - BLIND) / PACE)
    told = network.decoder.conditioning
    for layer in (told.own, told.belief, told.hint):
        layer.weight.data.zero_()
    return network.requires_grad_(False)


NETWORK = blind(random_model())
CACHE = NETWORK.prefill(random_speech([60, 31, 44]), KNOWN)


def whole(text: list[int], row: int, network: WhisperNetwork = NETWORK, cache: Cache = CACHE) -> Tensor:
    """Causal logits (U + 1, V) of one text."""
    alone = network.select(cache, torch.tensor([row]))
    return network.ar_logits(torch.tensor([text], dtype=torch.long), alone)[0]


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_every_place_is_said_what_reading_the_whole_text_says(rounds: list[tuple[list[int], ...]]) -> None:
    reader = NETWORK.rereader(CACHE)
    assert reader is not None
    told = [dict[int, Tensor]() for _ in KNOWN]
    for written in rounds:
        for row, (first, logits) in enumerate(reader.read(list(enumerate(written)))):
            told[row] |= {first + n: logits[n] for n in range(len(logits))}
            assert first + len(logits) == len(written[row]) + 1 or not len(logits)
        for row, text in enumerate(written):
            got = torch.stack([told[row][place] for place in range(len(text) + 1)])
            torch.testing.assert_close(got, whole(text, row), rtol=1e-4, atol=1e-4)


def test_only_what_changed_is_read_again() -> None:
    reader = NETWORK.rereader(CACHE)
    assert reader is not None
    assert [(first, len(logits)) for first, logits in reader.read([(0, [9, 10, 11]), (2, [])])] == [(0, 4), (0, 1)]
    assert [(first, len(logits)) for first, logits in reader.read([(0, [9, 10, 12, 13])])] == [(3, 2)]
    assert [(first, len(logits)) for first, logits in reader.read([(0, [9, 10])])] == [(3, 0)]
    assert [(first, len(logits)) for first, logits in reader.read([(0, [9, 10, 12])])] == [(3, 1)]


def test_a_row_s_logits_do_not_depend_on_its_neighbours() -> None:
    steps = [[(1, [9, 10, 11])], [(1, [9, 12, 11, 14])]]
    alone, among = NETWORK.rereader(CACHE), NETWORK.rereader(CACHE)
    assert alone is not None
    assert among is not None
    for step in steps:
        others = [(0, [8] * len(step)), (2, [13, 9, 9, 10, 17])]
        (_, one), (_, same) = alone.read(step)[0], among.read([others[0], *step, others[1]])[1]
        torch.testing.assert_close(one, same)


def test_the_canvas_gets_what_the_denoiser_says_of_it() -> None:
    reader = NETWORK.rereader(CACHE)
    assert reader is not None
    lengths = torch.tensor([8, 5, 7])
    again = Again(reader, tiny_tokenizer(), lengths)
    for seed in range(3):
        canvas = torch.randint(8, 20, (3, 8), generator=torch.Generator().manual_seed(seed))
        canvas[0, 5 - seed :] = END
        canvas[2, 2 + seed :] = END
        logits = again(canvas, torch.arange(3))
        denoised = NETWORK.denoise(canvas, CACHE, lengths=lengths)
        for row, told in enumerate([6 - seed, 5, 3 + seed]):  # row 1 is full: its end has no place
            torch.testing.assert_close(logits[row, :told], denoised[row, :told], rtol=1e-4, atol=1e-4)
            assert (logits[row, told:].argmax(-1) == END).all()
            assert (logits[row, told:].softmax(-1)[:, END] == 1).all()
    some = again(canvas[1:], torch.tensor([1, 2]))
    assert torch.equal(some, logits[1:])


@pytest.mark.parametrize("asked", [0.7, None], ids=["all", "one language"])
def test_with_guidance_what_changed_is_read_twice(asked: float | None) -> None:
    plain, lengths = random_model(), torch.tensor([8, 6, 7])
    config = replace(plain.config, decoding={"en": {"guidance": 0.7}})
    model = replace(plain, network=NETWORK, config=config)
    ask = Asking(model, CACHE, lengths, SamplingOptions(accept="joint", guidance=asked))
    weights = [0.7] * 3 if asked else [0.7, 0.0, 0.0]  # KNOWN
    assert ask.again is not None, "not the whole canvas"
    deaf = NETWORK.without_audio(CACHE, torch.tensor([True] * 3))
    assert deaf.memory[0][0][0].shape[2] == 1, "there is but one silence"
    rows, nothing = torch.arange(3), torch.full((3, 8), -1)
    for texts in ([[9, 10, 11], [], [12, 13]], [[9, 10, 12, 13], [8], [12, 13]]):
        canvas = torch.full((3, 8), END)
        for row, text in enumerate(texts):
            canvas[row, : len(text)] = torch.tensor(text, dtype=torch.long)
        got = ask(canvas, None, rows, nothing)
        for row, text in enumerate(texts):
            heard, unheard = whole(text, row), whole(text, row, cache=deaf)
            assert (heard - unheard).abs().max() > 0.1
            want = (1 + weights[row]) * heard - weights[row] * unheard
            torch.testing.assert_close(got[row, : len(text) + 1], want, rtol=1e-4, atol=1e-3)


def test_there_is_none_where_places_see_later_ones_or_are_told_more() -> None:
    assert random_model().network.rereader(CACHE) is None, "a handicap is no blindness"
    told = blind(random_model())
    told.decoder.conditioning.own.weight.data[0, 0] = 1.0
    assert told.rereader(CACHE) is None
    assert wake(random_model()).network.rereader(CACHE) is None


@pytest.mark.parametrize("votes", [1, 2])
def test_rows_may_share_what_they_hear_and_go_on_from_a_context(votes: int) -> None:
    rows = torch.arange(3).repeat_interleave(votes)
    cache = NETWORK.remember(NETWORK.select(CACHE, rows), [15, 16, 17])
    reader = NETWORK.rereader(cache)
    assert reader is not None
    canvas, lengths = torch.tensor([[9, 10, END, END]]).repeat(3 * votes, 1), torch.full((3 * votes,), 4)
    told = reader.read([(row, [9, 10]) for row in range(3 * votes)])
    denoised = NETWORK.denoise(canvas, cache, lengths=lengths)
    for row, (first, logits) in enumerate(told):
        assert first == 0
        torch.testing.assert_close(logits, denoised[row, :3], rtol=1e-4, atol=1e-4)
