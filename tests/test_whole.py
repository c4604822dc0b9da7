"""Laws of reading canvases as a whole: what is said of a text is what the network says of it, whoever is beside it."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from conftest import VOCABULARY, random_model, random_speech, wake
from torch import Tensor

from diffasr import whole
from diffasr.diffusion.fuse import guided
from diffasr.errors import OptionError
from diffasr.places import FEW, Place
from diffasr.torched import Torched
from diffasr.whole import Whole, places_of

MODEL = wake(random_model())
NETWORK, END = MODEL.module, MODEL.tokenizer.end
VIEW = Torched(NETWORK)
CACHE = VIEW.prefill(random_speech([60, 31, 44]), [0, 3, 5])
LENGTHS = [8, 5, 7]
TEXTS = [[3, 9, 12, 4], [7, 7, 1, 2, 5], []]
"""The second fills its canvas."""
OTHERS = [[3, 9], [1, 7, 1], [6, 6, 6]]


def reader(guidance: Sequence[float] = (0.0, 0.0, 0.0), **more: Any) -> Whole:
    return VIEW.reader(CACHE, LENGTHS, guidance, end=END, **more)


def told(text: Sequence[int], row: int, weight: float = 0.0, previous: Tensor | None = None) -> Tensor:
    """Logits (1, L, V) of the canvas of one row alone."""
    size = LENGTHS[row]
    canvas = torch.tensor([[*text, *[END] * (size - len(text))]])
    cache = NETWORK.select(CACHE.cache, torch.tensor([row]))
    deaf = NETWORK.without_audio(cache, torch.tensor([True]))
    known: dict[str, Any] = {"lengths": torch.tensor([size]), "previous": previous}
    heard = NETWORK.denoise(canvas, cache, hints=torch.full_like(canvas, -1), **known)
    return guided(heard, NETWORK.denoise(canvas, deaf, **known), weight) if weight else heard


def check(places: Sequence[Place], logits: Tensor, text: Sequence[int]) -> None:
    assert len(places) == min(len(text) + 1, logits.shape[1]), "a full canvas has no place behind its text"
    said = torch.tensor([[place.of(token) for token in range(VOCABULARY)] for place in places])
    torch.testing.assert_close(said, logits[0, : len(places)].log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [(0.0, 0.0, 0.0), (0.0, 0.7, 0.2)])
def test_what_is_said_of_a_text_is_what_the_network_says_of_its_canvas(guidance: Sequence[float]) -> None:
    read = reader(guidance)
    for texts in (TEXTS, OTHERS):
        for row, places in enumerate(read.read(list(enumerate(texts)))):
            check(places, told(texts[row], row, guidance[row]), texts[row])
    apart = (told(TEXTS[1], 1) - told(TEXTS[1], 1, 0.7)).abs().max()
    assert apart > 0.1


def test_a_reader_that_shows_beliefs_shows_what_it_said_last() -> None:
    read = reader(shows_beliefs=True)
    read.read(list(enumerate(TEXTS)))
    for row, places in enumerate(read.read(list(enumerate(OTHERS)))):
        check(places, told(OTHERS[row], row, previous=told(TEXTS[row], row)), OTHERS[row])


@pytest.mark.parametrize("worthwhile", [1e-9, 0.25, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_rows_that_are_done_leave_and_the_others_are_said_the_same(
    worthwhile: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "WORTHWHILE", worthwhile)
    asked = MagicMock(wraps=NETWORK.denoise)
    monkeypatch.setattr(NETWORK, "denoise", asked)
    read, rounds = reader([weight] * 3), ([0, 1, 2], [2, 0], [2])
    said = [read.read([(row, OTHERS[row]) for row in rows]) for rows in rounds]
    sizes = [len(call.args[0]) for call in asked.call_args_list]
    once = 2 if weight else 1  # with the sound, and without
    assert sizes == [once * size for size in ([3, 3, 3] if worthwhile > 1 else [3, 2, 1])]
    for rows, found in zip(rounds, said, strict=True):
        for row, places in zip(rows, found, strict=True):
            check(places, told(OTHERS[row], row, weight), OTHERS[row])


def test_places_are_log_probabilities_the_likeliest_first() -> None:
    logits = 3 * torch.randn(4, 2 * FEW, generator=torch.Generator().manual_seed(0))
    shares = logits.log_softmax(-1)
    for place, row in zip(places_of(logits), shares, strict=True):
        best = row.sort(descending=True)
        assert place.tokens == best.indices[:FEW].tolist()
        assert place.log_probabilities == pytest.approx(best.values[:FEW].tolist(), abs=1e-5)
        assert [place.of(token) for token in range(2 * FEW)] == pytest.approx(row.tolist(), abs=1e-5)
    (few,) = places_of(torch.tensor([[1.0, 2.0, 3.0]]))
    assert few.tokens == [2, 1, 0]


def test_texts_that_grow_are_read_a_token_at_a_time() -> None:
    seen: list[list[list[int]]] = []

    def read(tokens: Tensor) -> Tensor:
        seen.append(tokens.tolist())
        return torch.eye(9)[len(seen) : len(seen) + 2]

    module = MagicMock()
    module.ar_reader.return_value = read
    said = Torched(module).ar_reader(CACHE)
    likeliest = [[place.tokens[0] for place in said(texts)] for texts in ([[], []], [[5], [6]], [[5, 1], [6, 2]])]
    assert seen == [[[], []], [[5], [6]], [[1], [2]]]
    assert likeliest == [[1, 2], [2, 3], [3, 4]]


def test_single_places_can_t_be_asked_about() -> None:
    read = reader()
    assert not read.looks_ahead
    with pytest.raises(OptionError, match="no single places: ahead can only be 0"):
        read.ahead(0, 1, [2])
