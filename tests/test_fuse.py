"""CTC's say in a step's logits, against a reference that goes place by place; and guidance."""

from typing import Any

import pytest
import torch
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_decode import heard, scripted
from torch import Tensor

from diffasr.canvases import denoise_steps
from diffasr.decode import Canvases
from diffasr.diffusion import batched
from diffasr.diffusion.fuse import fused, guided
from diffasr.diffusion.options import SamplingOptions
from diffasr.text import Tokenizer
from diffasr.torched import Prefilled


def two_letters() -> Tokenizer:
    """The tokenizer with CTC labels of at most two letters: "the" is no label of its own."""
    return Tokenizer(tiny_tokenizer().backend, letters=2)


def slow(logits: Tensor, labels: Tensor, hints: list[list[int]], tokenizer: Tokenizer, weight: float) -> Tensor:
    """Place by place and token by token, from what the tokens look like."""
    out = logits.log_softmax(-1).clone()
    spelled = [tokenizer.backend.id_to_token(i) for i in tokenizer.alphabet]
    special = tokenizer.backend.get_added_tokens_decoder()
    for row, places in enumerate(hints):
        for place, slot in enumerate(places):
            for token in range(tokenizer.size) if slot >= 0 else ():
                text = tokenizer.backend.id_to_token(token)
                label = tokenizer.blank
                if token not in special:  # the longest label that it begins with: this vocabulary has no other
                    label = max((n for n, s in enumerate(spelled) if text.startswith(s)), key=lambda n: len(spelled[n]))
                out[row, place, token] += weight * labels[row, slot].log_softmax(-1)[label]
    return out


@given(
    st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=1, max_size=3), st.sampled_from([0.3, 2])
)
def test_ctc_is_added_where_it_points_and_nowhere_else(hints: list[list[int]], weight: float) -> None:
    tokenizer, dice = two_letters(), torch.Generator().manual_seed(len(hints))
    logits = torch.randn(len(hints), 3, tokenizer.size, generator=dice)
    labels = 3 * torch.randn(len(hints), 5, len(tokenizer.alphabet), generator=dice)
    got = fused(logits, labels, torch.tensor(hints), torch.tensor(tokenizer.openings), weight)
    torch.testing.assert_close(got, slow(logits, labels, hints, tokenizer, weight))


def test_a_word_is_known_by_its_first_two_letters() -> None:
    tokenizer = two_letters()
    the, th, t, a = (tokenizer.backend.token_to_id(word) for word in ("the", "th", "t", "a"))
    labels = torch.zeros(1, 1, len(tokenizer.alphabet))
    labels[0, 0, tokenizer.alphabet.index(th)] = 10
    flat = torch.zeros(1, 1, tokenizer.size)
    got = fused(flat, labels, torch.zeros(1, 1, dtype=torch.long), torch.tensor(tokenizer.openings), 1.0)[0, 0]
    assert got[the] == got[th] > got[t] == got[a]


def test_the_evidence_follows_hints_that_move() -> None:
    """In every step of a decode the logits are those of the reference, for the hints that the network was given."""
    seen: list[Tensor] = []
    hears, said, weight = "thedgran", "thedogran", 0.2
    results, script = scripted([said], [hears], ctc_weight=weight, accept="prefix")
    assert results[0].text == said
    hints = [call["hints"] for call in script.calls]
    assert len({tuple(h[0].tolist()) for h in hints}) > 1, "they moved"
    tokenizer = tiny_tokenizer()
    model: Any = type("Scripted", (), {"network": script, "tokenizer": tokenizer})()
    cache = script.prefill(heard(model, [hears]), None)
    paths = batched.heard(cache.ctc, cache.slots, blank=tokenizer.blank, joined=tokenizer.joined)
    options = SamplingOptions(ctc_weight=weight, accept="prefix")
    for draft in denoise_steps(model, Prefilled(cache), Canvases(paths, [16], [0]), options):
        plain = 30.0 * torch.nn.functional.one_hot(cache.memory[:, :16], tokenizer.size)
        expected = slow(plain, cache.ctc, hints[len(seen)].tolist(), tokenizer, weight).log_softmax(-1)
        seen.append(expected)
        size = int(draft.accepted.sum())
        chosen = expected[0, range(size), draft.tokens[0, :size]]
        torch.testing.assert_close(draft.log_probability[0, :size], chosen)
    assert len(seen) == len(hints)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_guidance_leads_away_from_what_is_said_without_the_sound(weight: float) -> None:
    said, unheard = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    torch.testing.assert_close(guided(said, said, weight), said)
    torch.testing.assert_close(guided(said, unheard, weight) - said, weight * (said - unheard))
