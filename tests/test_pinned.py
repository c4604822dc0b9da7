"""Laws of a canvas of which some tokens are known, with logits at random and with a script."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.ctc import BUCKETS
from diffasr.diffusion.joint import Joint
from diffasr.diffusion.lattice import Sound
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.pinned import Judge, Piece, Sheet
from diffasr.diffusion.sampler import sample
from diffasr.diffusion.together import write
from diffasr.errors import OptionError
from diffasr.places import Place
from diffasr.text import Tokenizer
from diffasr.whole import places_of

TOKENIZER = tiny_tokenizer()


def pieces(*texts: str) -> list[Piece]:
    """Free and kept ones in turn."""
    found: list[Piece] = []
    for n, text in enumerate(texts):
        goes_on = any(p.tokens for p in found)
        found.append(Piece(tuple(TOKENIZER.encode(text, goes_on=goes_on)) if text else (), n % 2 == 1))
    return found


def impartial(_text: str) -> float:
    return 0.0


def run(sheet: Sheet, wanted: "Tensor | str", steps: int = 8) -> str:
    """Sample with the logits (1, size, V) of each call at random, or with those that say a text."""

    def denoise(canvas: Tensor, _previous: Tensor | None, _rows: Tensor) -> Tensor:
        assert torch.equal(canvas, sheet.canvas())
        if isinstance(wanted, str):
            ids = TOKENIZER.encode(wanted)
            said = torch.full((1, sheet.size), TOKENIZER.end)
            said[0, : len(ids)] = torch.tensor(ids[: sheet.size])
            return sheet.narrowed(30.0 * F.one_hot(said, VOCABULARY).float())
        return sheet.narrowed(torch.randn(1, sheet.size, VOCABULARY, generator=dice))

    dice = torch.Generator().manual_seed(0 if isinstance(wanted, str) else int(wanted))
    options = SamplingOptions(steps=steps, accept="prefix")
    lengths = torch.tensor([sheet.size])
    for draft in sample(denoise, sheet.canvas(), lengths, options, end=TOKENIZER.end, renew=sheet.renew):
        now = [t for t in draft.tokens[0].tolist() if t != TOKENIZER.end]
        assert now == sheet.tokens()
    return TOKENIZER.decode(sheet.tokens())


@pytest.mark.parametrize("seed", range(30))
def test_what_is_kept_stays_as_words_of_its_own_and_in_order(seed: int) -> None:
    sheet = Sheet(
        pieces("they said", "cat", "and the", "big dog", "", "ran", "off"), TOKENIZER, impartial, is_spaced=True
    )
    text = run(sheet, torch.tensor(seed), steps=1 + seed)
    words = text.split()
    assert [words[n] for n in sheet.kept_words("en")] == ["cat", "big", "dog", "ran"]
    assert len(sheet.tokens()) < sheet.size


@pytest.mark.parametrize("seed", range(5))
def test_without_spaces_letters_may_follow_but_what_is_kept_is_whole(seed: int) -> None:
    sheet = Sheet(pieces("ab", "xyz", "cd"), TOKENIZER, impartial, is_spaced=False)
    assert "xyz" in run(sheet, torch.tensor(seed)).replace(" ", "")


def test_the_text_changes_on_both_sides_of_what_is_kept() -> None:
    sheet = Sheet(pieces("teh", "cat", "szt"), TOKENIZER, impartial, is_spaced=True)
    assert run(sheet, "the cat sat") == "the cat sat"


def test_words_too_many_before_a_kept_one_are_taken_out() -> None:
    sheet = Sheet(pieces("on um", "cats", ""), TOKENIZER, impartial, is_spaced=True)
    assert run(sheet, "on cats", steps=12) == "on cats"


def test_words_are_added_and_the_text_ends_behind_the_last_kept_one_only() -> None:
    assert run(Sheet(pieces("a", "dog", ""), TOKENIZER, impartial, is_spaced=True), "a dog ran") == "a dog ran"
    assert run(Sheet(pieces("a", "dog", "ran off"), TOKENIZER, impartial, is_spaced=True), "a dog") == "a dog"
    assert run(Sheet(pieces("a big", "dog", "ran"), TOKENIZER, impartial, is_spaced=True), "a", 20).endswith(" dog")


def test_a_step_too_few_leaves_the_rest_as_it_was() -> None:
    texts = [
        run(Sheet(pieces("bbb", "cat", "ddd"), TOKENIZER, impartial, is_spaced=True), "aaa cat aaa", steps=n)
        for n in (1, 2, 9)
    ]
    assert len(set(texts)) == 3
    assert texts[-1] == "aaa cat aaa"


@pytest.mark.parametrize(("cost", "expected"), [(0.0, "a cat ran"), (59.0, "a cat ran"), (61.0, "a cat rat")])
def test_a_change_that_ctc_speaks_against_is_not_made(cost: float, expected: str) -> None:
    judge: Judge = lambda text: 0.0 if text == "a cat rat" else -cost  # noqa: E731
    sheet = Sheet(pieces("a", "cat", "rat"), TOKENIZER, judge, is_spaced=True)
    assert run(sheet, "a cat ran") == expected


def test_where_ctc_speaks_against_every_change_none_is_made() -> None:
    judge: Judge = lambda text: 0.0 if text == "a cat rat" else -1e3  # noqa: E731
    for seed in range(3):
        assert (
            run(Sheet(pieces("a", "cat", "rat"), TOKENIZER, judge, is_spaced=True), torch.tensor(seed)) == "a cat rat"
        )


SPELLER = Tokenizer(TOKENIZER.backend, letters=2)
"""The same tokens; CTC has labels of its own."""


def sheet_of(*texts: str) -> Sheet:
    return Sheet(pieces(*texts), SPELLER, impartial, is_spaced=True)


def jointly(sheet: Sheet, wanted: Tensor | str, heard: str, *, steps: int = 8, doubt: float = 0.1) -> str:
    """As ``run``, but written together with CTC, which has ``heard`` something, each label of it with so much doubt."""
    path = [label for piece in SPELLER.pieces(heard) for label in (piece, piece, SPELLER.blank)]
    shares = np.full((len(path), len(SPELLER.alphabet)), doubt / (len(SPELLER.alphabet) - 1))
    shares[np.arange(len(path)), path] = 1 - doubt
    sound = Sound(np.log(shares).astype(np.float32), blank=SPELLER.blank)
    assert SPELLER.spelling is not None
    joint = Joint(sound, SPELLER.spelling, end=SPELLER.end, weight=0.43, confidence=0.1)
    dice = torch.Generator().manual_seed(0 if isinstance(wanted, str) else int(wanted))

    class Denoiser:
        looks_ahead = False

        def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
            assert texts == [(0, sheet.tokens())]
            if not isinstance(wanted, str):
                return [places_of(3.0 * torch.randn(len(sheet.tokens()) + 1, VOCABULARY, generator=dice))]
            said = [*TOKENIZER.encode(wanted), *[TOKENIZER.end] * sheet.size][: len(sheet.tokens()) + 1]
            return [places_of(30.0 * F.one_hot(torch.tensor(said), VOCABULARY).float())]

        def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
            raise AssertionError("nobody looks ahead")

    known: dict[str, Any] = {"steps": steps, "end": TOKENIZER.end}
    for draft in write(Denoiser(), [sheet.together(joint)], [sheet.tokens()], [sheet.size], **known):
        assert [t for t in draft.tokens[0].tolist() if t != TOKENIZER.end] == sheet.tokens()
        assert len(sheet.tokens()) < sheet.size
    return TOKENIZER.decode(sheet.tokens())


def test_written_together_what_is_kept_stays_as_well() -> None:
    changed = 0
    for seed in range(20):
        sheet = sheet_of("they said", "cat", "and the", "big dog", "", "ran", "off")
        before = TOKENIZER.decode(sheet.tokens())
        text = jointly(sheet, torch.tensor(seed), before, steps=1 + seed, doubt=0.8)
        changed += text != before
        words = text.split()
        assert [words[n] for n in sheet.kept_words("en")] == ["cat", "big", "dog", "ran"]
    assert changed > 10


def test_written_together_the_text_changes_on_both_sides() -> None:
    sheet = sheet_of("teh", "cat", "szt")
    assert jointly(sheet, "the cat sat", "the cat sat") == "the cat sat"
    assert sheet.kept_words("en") == [1]


def test_written_together_a_kept_word_is_not_said_twice_and_is_no_end() -> None:
    assert jointly(sheet_of("on um", "cats", ""), "on cats", "on cats", steps=12) == "on cats"
    assert jointly(sheet_of("a", "dog", "ran off"), "a dog", "a dog") == "a dog"
    assert "dog" in jointly(sheet_of("a big", "dog", "ran"), "a", "a big dog ran", steps=20).split()


@pytest.mark.parametrize(("doubt", "expected"), [(0.5, "a cat ran"), (1e-30, "a cat rat")])
def test_written_together_even_the_first_change_is_weighed(doubt: float, expected: str) -> None:
    assert jointly(sheet_of("a", "cat", "rat"), "a cat ran", "a cat rat", doubt=doubt) == expected


def test_a_text_that_no_canvas_holds_is_refused() -> None:
    long = "ab" * (BUCKETS[-1] // 2)
    with pytest.raises(OptionError, match="191"):
        Sheet(pieces(long, "cat", ""), TOKENIZER, impartial, is_spaced=True)
