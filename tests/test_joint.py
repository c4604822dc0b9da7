"""Writing together: a fake denoiser that looks to the left, a fake posterior that hears letters."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from torch import Tensor
from torch.nn import functional as F

from diffasr.diffusion.fluency import Fluency
from diffasr.diffusion.joint import CALM, FAR, Ahead, Joint
from diffasr.diffusion.lattice import Sound
from diffasr.places import Opinion, Place, unread
from diffasr.text import Spelling, Tokenizer
from diffasr.train.letters import build
from diffasr.whole import places_of

LETTERS = "abcdefghij"
END = len(LETTERS)
LABELS = {letter: n + 1 for n, letter in enumerate(LETTERS)}
SPELLING = Spelling(names=[*LETTERS, ""], labels=LABELS, mirrored=LABELS, longer={}, longest=1)


def sound(text: str, *, sure: float = 0.9) -> Sound:
    """A clip in which CTC hears the letters of ``text``, two slots each and a blank between."""
    path = [label for letter in text for label in (SPELLING.labels[letter],) * 2 + (0,)]
    shares = np.full((len(path), len(LETTERS) + 1), (1 - sure) / len(LETTERS))
    shares[np.arange(len(path)), path] = sure
    return Sound(np.log(shares).astype(np.float32), blank=0)


def ids(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def letters(tokens: list[int]) -> str:
    return "".join(LETTERS[token] for token in tokens)


class Writer:
    """A denoiser that looks to the left and knows a text of different letters by heart: behind each of them comes the
    next, and behind one that is not in the text the one that belongs to the place."""

    def __init__(self, text: str, *, sure: float = 0.9) -> None:
        self.text, self.sure = [*ids(text), END], sure

    def __call__(self, tokens: list[int]) -> list[Place]:
        return places_of(self.logits(tokens))

    def logits(self, tokens: list[int]) -> Tensor:
        """(U + 1, V)."""
        out = torch.full((len(tokens) + 1, END + 1), math.log((1 - self.sure) / END))
        for place, before in enumerate([-1, *tokens]):
            known = before in self.text[:-1]
            following = self.text.index(before) + 1 if known else min(place, len(self.text) - 1)
            out[place, self.text[following]] = math.log(self.sure)
        return out


def joint(heard: str, *, sure: float = 0.9, **changes: Any) -> Joint:
    settings: dict[str, Any] = {"weight": 0.43, "confidence": 0.3} | changes
    return Joint(sound(heard, sure=sure), SPELLING, end=END, **settings)


def steps(writes: Joint, denoiser: Writer, start: str, most: int = 20) -> list[str]:
    """The drafts until one stays."""
    tokens, drafts = ids(start), [start]
    for _ in range(most):
        new = writes.rewritten(tokens, denoiser(tokens))
        if new == tokens:
            return drafts
        tokens = new
        drafts.append(letters(tokens))
    raise AssertionError(f"no end: {drafts}")


def test_what_both_find_right_stays() -> None:
    assert steps(joint("abcd"), Writer("abcd"), "abcd") == ["abcd"]


@pytest.mark.parametrize("start", ["abgd", "abd", "abccd", "hhhh", "abcdef"])
def test_ends_in_the_text_that_both_hear_wherever_it_starts(start: str) -> None:
    assert steps(joint("abcd"), Writer("abcd"), start)[-1] == "abcd"


@pytest.mark.parametrize(("heard", "knows", "start"), [("abcdefg", "abcdefg", "hbhdhfh"), ("abcd", "abed", "abgd")])
def test_where_it_stays_is_where_one_token_after_another_leads(heard: str, knows: str, start: str) -> None:
    """A denoiser that sees the left only: the end is that of writing from the left, which is never revised."""
    denoiser, one = Writer(knows), joint(heard)
    tokens: list[int] = []
    while True:
        token = one.next(tokens, denoiser(tokens)[-1])
        if token == END:
            break
        tokens.append(token)
    assert steps(joint(heard), denoiser, start)[-1] == letters(tokens)


def test_a_lost_token_moves_what_is_behind_it_in_one_step() -> None:
    assert steps(joint("abcdefg"), Writer("abcdefg"), "abdefg")[:2] == ["abdefg", "abcdefg"]


def test_a_token_too_many_leaves_in_one_step() -> None:
    drafts = steps(joint("abcdefg"), Writer("abcdefg"), "abbcdefg")
    assert drafts[-1] == "abcdefg" and len(drafts) <= 3


@pytest.mark.parametrize(("start", "drafts"), [("jbcdefgj", 2), ("jjcdefgh", 3)])
def test_changes_far_apart_are_made_in_one_step(start: str, drafts: int) -> None:
    """The second of two neighbours waits for the next step."""
    assert len(steps(joint("abcdefgh"), Writer("abcdefgh"), start)) == drafts
    assert len("bcdefg") > CALM


def test_weight_decides_between_the_two() -> None:
    heard, knows = "abcd", "abed"
    assert steps(joint(heard, weight=0.0), Writer(knows, sure=0.5), "abcd")[-1] == knows
    assert steps(joint(heard, weight=5.0), Writer(knows, sure=0.5), "abcd")[-1] == heard


def test_where_the_denoiser_is_sure_ctc_is_not_asked_even_for_what_stands_there() -> None:
    heard, knows = "abcd", "abed"
    for sure, text in ((0.5, heard), (0.9, knows)):
        unlikely = math.log(sure) - math.log((1 - sure) / END)
        assert (unlikely > FAR) == (text == knows)
        assert steps(joint(heard, sure=0.99, weight=50.0), Writer(knows, sure=sure), heard)[-1] == text


@pytest.mark.parametrize(("caution", "text"), [(0.0, "abed"), (0.1, "abed"), (2.0, "abcd")])
def test_with_caution_a_change_asks_for_consent(caution: float, text: str) -> None:
    """The denoiser gains by its letter what CTC, so much counted, loses or does not."""
    writes = joint("abcd", sure=0.99, weight=0.1, caution=caution)
    assert steps(writes, Writer("abed"), "abcd")[-1] == text


def test_caution_lets_through_what_both_want() -> None:
    assert steps(joint("abcd", caution=5.0), Writer("abcd"), "abgd")[-1] == "abcd"


@pytest.mark.parametrize("reads", ["abcd", "abed"])
@pytest.mark.parametrize("start", ["abcd", "abed", "abd"])
def test_how_a_text_reads_decides_between_what_is_equally_heard_and_equally_likely(reads: str, start: str) -> None:
    torn = np.logaddexp(sound("abcd").log_probs, sound("abed").log_probs) - np.float32(math.log(2))
    known = build({"en": [reads]}, order=3, least=1).language("en")
    fluency = Fluency(known, SPELLING, weight=0.3, bonus=1.2)
    writes = Joint(Sound(torn, blank=0), SPELLING, end=END, weight=0.43, confidence=0.3, fluency=fluency)
    tokens = ids(start)
    for _ in range(6):
        one, other = (Writer(text).logits(tokens).log_softmax(-1) for text in ("abcd", "abed"))
        tokens = writes.rewritten(tokens, places_of(torch.logaddexp(one, other)))
    assert letters(tokens) == reads


@pytest.mark.parametrize(("confidence", "drafts"), [(0.3, 2), (0.8, 3)])
def test_confidence_holds_back_what_is_not_the_first_change(confidence: float, drafts: int) -> None:
    writes, unsure = joint("abcdefgh", confidence=confidence), Writer("abcdefgh", sure=0.5)
    assert len(steps(writes, unsure, "jbcdefgj")) == drafts


def test_ctc_may_object_to_what_is_not_the_first_change() -> None:
    start, knows = "jbcdefgh", "abcdefgi"
    writes, denoiser = joint("abcdefgh", sure=0.99999, weight=0.1), Writer(knows)
    one, other = (letters(writes.rewritten(ids(text), denoiser(ids(text)))) for text in (start, "abcdefgh"))
    assert one == "abcdefgh", "the last letter would cost CTC too much"
    assert other != "abcdefgh", "as the first change it is made"


def test_a_step_reads_nothing_but_what_it_is_given() -> None:
    writes, tokens = joint("abcd"), ids("abgd")
    said = Writer("abcd")(tokens)
    assert writes.rewritten(tokens, said) == writes.rewritten(tokens, said) and tokens == ids("abgd")


@pytest.mark.parametrize("nats", [0.0, 1.5, 1000.0])
@pytest.mark.parametrize("token", [0, 3, 9])
def test_a_raised_token_is_as_if_its_logit_were_higher(token: int, nats: float) -> None:
    logits = torch.tensor([0.0, 3.0, -1.0, 2.5, 1.0, 0.5, -2.0, 0.25, 4.0, -6.0])
    bent = logits + nats * torch.nn.functional.one_hot(torch.tensor(token), 10)
    (plain,), (wanted,) = places_of(logits[None]), places_of(bent[None])
    few = Place(plain.tokens[:3], plain.log_probabilities[:3], plain.rest)
    for place in (plain, few):
        found = place.raised(token, nats)
        assert found.tokens == [other for other in wanted.tokens if other in {*place.tokens, token}]
        said = [wanted.of(n) for n in range(10)]
        assert [found.of(n) for n in range(10)] == pytest.approx(said, abs=1e-5, rel=1e-5)


def test_an_opinion_of_a_place_knows_what_stands_there_however_unlikely() -> None:
    (place,) = places_of(torch.tensor([[1.0, 2.0, 3.0]]))
    few = Place(place.tokens[:1], place.log_probabilities[:1], place.rest)
    assert few.opinion(0) == Opinion(own=place.of(0), tokens=[2], log_probabilities=place.log_probabilities[:1])
    assert [few.of(n) for n in range(3)] == [place.of(n) for n in range(3)]


def test_behind_a_text_the_end_is_sure_and_all_else_costs_twenty_nats() -> None:
    place = unread(END)
    assert (place.of(END), place.of(0), place.tokens) == (0.0, -20.0, (END,))


def test_a_tokenizer_spells_with_short_labels_only(tokenizer: Tokenizer) -> None:
    assert tokenizer.spelling is None, "every token a label"
    short = Tokenizer(tiny_tokenizer().backend, letters=2)
    spelling = short.spelling
    assert spelling is not None and short.blank not in spelling.labels.values()
    assert spelling.longest == max(len(writing) for writing in spelling.labels)
    assert {writing[::-1]: label for writing, label in spelling.labels.items()} == spelling.mirrored
    assert all(spelling.names[short.alphabet[label]] == writing for writing, label in spelling.labels.items())
    assert all(
        writing.startswith(part) and len(writing) > len(part)
        for part, longer in spelling.longer.items()
        for writing, label in spelling.labels.items()
        if label in longer
    )


def asking(denoiser: Writer, tokens: list[int], most: int = 2) -> tuple[Ahead, list[tuple[int, str]]]:
    """A way to ask the denoiser about single places, and what it was asked: behind what of the text, and what else."""
    asked = list[tuple[int, str]]()

    def told(place: int, new: Any, own: int) -> Opinion:
        asked.append((place, letters(new)))
        return denoiser([*tokens[:place], *new])[-1].opinion(own)

    return Ahead(most=most, told=told), asked


@pytest.mark.parametrize("most", [0, 1, 2])
def test_where_places_can_be_asked_about_a_step_writes_so_many_tokens_more(most: int) -> None:
    writes, denoiser, start = joint("abcdef"), Writer("abcdef"), "abjhhf"
    ahead, asked = asking(denoiser, ids(start), most)
    said = denoiser(ids(start))
    alone = letters(writes.rewritten(ids(start), said))
    got = letters(writes.rewritten(ids(start), said, ahead))
    assert len(asked) == most
    assert (got == alone) == (most == 0)
    right = [n for n in range(6) if got[: n + 1] == "abcdef"[: n + 1]]
    assert len(right) >= min(6, 3 + most), got


def test_behind_what_stays_nothing_is_asked() -> None:
    denoiser = Writer("abcd")
    ahead, asked = asking(denoiser, ids("abcd"))
    assert letters(joint("abcd").rewritten(ids("abcd"), denoiser(ids("abcd")), ahead)) == "abcd"
    assert not asked


def test_what_is_said_ahead_without_being_sure_changes_nothing() -> None:
    writes, denoiser = joint("abcdef", confidence=0.95), Writer("abcdef", sure=0.9)
    start = ids("abjhhf")
    said = denoiser(start)
    ahead, asked = asking(denoiser, start)
    assert writes.rewritten(start, said, ahead) == writes.rewritten(start, said)
    assert asked


@pytest.mark.parametrize("text", ["abjjefgh", "abefgh", "abjjjefgh"])
def test_it_is_asked_until_what_stands_there_is_said(text: str) -> None:
    writes, denoiser, start = joint("abcdefgh"), Writer("abcdefgh"), ids(text)
    ahead, asked = asking(denoiser, start, most=1000)
    assert letters(writes.rewritten(start, denoiser(start), ahead)) == "abcdefgh"
    assert asked == [(2, "c"), (2, "cd")], "behind the last change what stands there is right"


def by_hand(text: str, heard: str, says: Tensor) -> tuple[float, float]:
    """What the denoiser's logits (U + 1, V) give a text, and CTC as torch counts it."""
    spoken = torch.from_numpy(sound(heard).log_probs)
    labels = torch.tensor([SPELLING.labels[letter] for letter in text], dtype=torch.long)
    lost = F.ctc_loss(spoken, labels, torch.tensor(len(spoken)), torch.tensor(len(labels)), reduction="sum")
    return -float(F.cross_entropy(says, torch.tensor([*ids(text), END]), reduction="sum")), -float(lost)


@pytest.mark.parametrize("weight", [0.0, 0.43, 3.0])
@pytest.mark.parametrize("text", ["", "a", "abcd", "abbdj", "ffff"])
def test_a_text_is_worth_what_both_give_it_and_its_end(text: str, weight: float) -> None:
    says = torch.randn(len(text) + 1, END + 1, generator=torch.Generator().manual_seed(len(text)))
    places = places_of(says)
    few = [Place(place.tokens[:2], place.log_probabilities[:2], place.rest) for place in places]
    said, spoken = by_hand(text, "abcd", says)
    for told in (places, few):
        worth = joint("abcd", weight=weight).worth(ids(text), told)
        assert worth == pytest.approx(said + weight * spoken, abs=1e-3)


def test_how_a_text_reads_counts_in_what_it_is_worth() -> None:
    known = build({"en": ["abcd"]}, order=3, least=1).language("en")
    read = Fluency(known, SPELLING, weight=0.3, bonus=1.2)
    places = Writer("abcd")(ids("abed"))
    plain, more = (joint("abcd", fluency=fluency).worth(ids("abed"), places) for fluency in (None, read))
    letters_alone = 0.3 * known.text("abed") + 1.2 * len("abed")
    assert more - plain == pytest.approx(0.43 * letters_alone, abs=1e-4)


@pytest.mark.parametrize("start", ["abgd", "abd", "abccd", "hhhh", "abcdef"])
def test_what_both_hear_is_worth_more_than_each_text_on_the_way_there(start: str) -> None:
    writes, denoiser = joint("abcd"), Writer("abcd")
    worths = [writes.worth(ids(text), denoiser(ids(text))) for text in steps(writes, denoiser, start)]
    assert max(worths[:-1]) < worths[-1]
