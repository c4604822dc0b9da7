"""Laws of the model of letters: it is a distribution, and Witten and Bell's, however it is packed."""

import binascii
import itertools
import math
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffasr import letters as module
from diffasr.errors import ModelError
from diffasr.letters import END, START, STEP, UNSEEN, Gram, LanguageLetters, Letters
from diffasr.train.letters import THIN, build

TEXTS = {
    "en": ["the cat sat on the mat", "the dog sat there", "that is the cat that they saw", "a man and a cat"],
    "de": ["die Katze saß da", "größer als der Hund", "das ist die Straße", "über die Brücke"],
    "hi": ["बिल्ली चटाई पर बैठी है", "यह एक बड़ी बिल्ली है", "कुत्ता घर में है"],
    "zh": ["猫坐在垫子上。", "那只猫很大。", "我在北京吃饭。", "他在上海吃饭。"],
}
NEVER_SEEN = "\u0f40"


def model(code: str, *, order: int = 4, least: int = 1) -> LanguageLetters:
    return build(TEXTS, order=order, least=least).language(code)


class WittenBell:
    """Interpolated, as the article has it: a table of counts for each length, and a recursion."""

    def __init__(self, lines: list[str], order: int) -> None:
        rows = [START + line + END for line in lines]
        self.order = order
        self.counts = Counter(
            row[a:b] for row in rows for b in range(len(row) + 1) for a in range(max(0, b - order), b)
        )

    def probability(self, context: str, letter: str) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        shorter = self.probability(context[1:], letter) if context else math.exp(-UNSEEN)
        following = [n for gram, n in self.counts.items() if len(gram) == len(context) + 1 and gram[:-1] == context]
        kinds, seen = len(following), sum(following)
        return (self.counts[context + letter] + kinds * shorter) / (seen + kinds) if seen else shorter


def contexts(code: str) -> list[str]:
    """What the lines begin with, and a few that no line has."""
    begun = {(START + line)[:n] for line in TEXTS[code] for n in range(1, len(line) + 2, 3)}
    return [*sorted(begun), "", NEVER_SEEN, "xq", f"{NEVER_SEEN}{TEXTS[code][0][:2]}"]


@pytest.mark.parametrize("code", list(TEXTS))
@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_the_interpolated_model_where_nothing_is_thinned_out(code: str, order: int) -> None:
    ours, plain = model(code, order=order), WittenBell(TEXTS[code], order)
    letters = [*sorted({*"".join(TEXTS[code])}), END, NEVER_SEEN]
    wrong = set()
    for context, letter in itertools.product(contexts(code)[::2], letters[::3]):
        away = ours.log_probability(context, letter) - math.log(plain.probability(context, letter))
        if abs(away) > (order + 1) * STEP / 2:  # so many numbers are added up at most, each of them rounded
            wrong.add(context[max(0, len(context) - ours.reach) :] + letter)
    assert len(wrong) <= 1, wrong  # one that is taken for another, as a table of marks may


@pytest.mark.parametrize("code", list(TEXTS))
@pytest.mark.parametrize("least", [1, 2])
def test_letters_share_one_behind_any_context(code: str, least: int) -> None:
    """Each letter that no text had has the same share; there are as many as make a letter ``UNSEEN`` nats rare."""
    ours, seen = model(code, order=6, least=least), {*START, *"".join(TEXTS[code]), *END}
    for context in contexts(code):
        mass = sum(math.exp(ours.log_probability(context, letter)) for letter in seen)
        rest = (math.exp(UNSEEN) - len(seen)) * math.exp(ours.log_probability(context, NEVER_SEEN))
        assert 0 < rest < 1
        assert mass + rest == pytest.approx(1, abs=3 * STEP), context


def test_order_one_knows_no_context_and_more_know_no_more_than_they_reach() -> None:
    alone, ours = model("en", order=1), model("en", order=4)
    assert alone.reach == 0
    assert alone.log_probability("th", "e") == alone.log_probability("", "e") == alone.log_probability("xx", "e")
    assert ours.log_probability("on the", "c") == ours.log_probability("the", "c") != ours.log_probability("he", "c")


def test_what_is_seen_too_seldom_is_left_out_of_long_ones_alone() -> None:
    thin, whole = build(TEXTS, order=6), build(TEXTS, order=6, least=1)
    assert THIN == 4
    for gram in ("mat", "man", "saw"):
        kept, found = thin.find("en", gram), whole.find("en", gram)
        assert kept is not None and found is not None and kept.share == found.share
    assert thin.find("en", " mat") is thin.find("en", "mat\n") is None
    assert thin.find("en", " cat") is not None
    assert whole.find("en", " mat") is not None
    assert len(thin.arrays[0]) < len(whole.arrays[0])


def test_languages_do_not_mix() -> None:
    together = build(TEXTS, order=4)
    for code, lines in TEXTS.items():
        alone, mine = build({code: lines}, order=4).language(code), together.language(code)
        assert [mine.text(line) for line in lines] == [alone.text(line) for line in lines]
        assert together.language(code) is mine, "what was asked of it is remembered"
        strange = together.language("es").log_probability("", lines[0][0])
        assert strange == -UNSEEN < mine.log_probability("", lines[0][0]), (
            "of a language without texts nothing is known"
        )


def test_a_text_is_its_letters_one_behind_the_other_and_its_end() -> None:
    ours, text = model("hi"), "यह बिल्ली है"
    row = START + text + END
    assert ours.text(text) == pytest.approx(sum(ours.log_probability(row[:n], row[n]) for n in range(1, len(row))))
    assert math.isfinite(ours.text(NEVER_SEEN * 40))
    assert ours.text("") == ours.log_probability(START, END)


def test_what_is_remembered_has_a_limit_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [model("en").text(line) for line in TEXTS["en"]]
    monkeypatch.setattr(module, "REMEMBERED", 10)
    forgetful = model("en")
    for _ in range(2):
        assert [forgetful.text(line) for line in TEXTS["en"]] == wanted
        assert sum(len(context.known) for context in forgetful._contexts.values()) <= 10
        assert len(forgetful._contexts) <= 10


@pytest.mark.parametrize(
    ("code", "likely", "unlikely"),
    [
        ("en", "the cat", "the czt"),
        ("de", "die Straße", "die Strsße"),
        ("hi", "बिल्ली", "बल्लिी"),
        ("zh", "在北京", "在京北"),
    ],
)
def test_what_reads_well_is_likelier(code: str, likely: str, unlikely: str) -> None:
    assert len(likely) == len(unlikely)
    assert model(code).text(likely) > model(code).text(unlikely) + 1


def test_a_file_keeps_it(tmp_path: Path) -> None:
    made = build(TEXTS, order=3)
    save_file(made.state(), tmp_path / "letters.safetensors")
    again = Letters.from_state(load_file(tmp_path / "letters.safetensors"))
    assert again is not None
    assert again.order == 3
    assert all(np.array_equal(a, b) for a, b in zip(again.arrays, made.arrays, strict=True))
    assert all(again.language(code).text(t) == made.language(code).text(t) for code in TEXTS for t in TEXTS[code])


def test_a_file_without_any_has_none_and_a_part_of_it_is_refused() -> None:
    state = build(TEXTS, order=2).state()
    assert Letters.from_state({"decoder.embedding.weight": np.zeros(2)}) is None
    for name in state:
        with pytest.raises(ModelError, match=name):
            Letters.from_state({other: value for other, value in state.items() if other != name})
    full = {"letters.marks": np.ones_like(state["letters.marks"])}
    for wrong in (full, {"letters.order": np.array(0)}, {"letters.shares": np.zeros(3, np.uint8)}):
        with pytest.raises(ModelError, match="fetch it again"):
            Letters.from_state(state | wrong)


def test_a_full_table_finds_what_is_in_it_and_seldom_what_is_not() -> None:
    grams = [("en", f"{n:x}", Gram(-STEP * (n % 255), -STEP * (n % 13))) for n in range(4000)]
    table = Letters.packed(4, grams, len(grams))
    assert int((table.arrays[0] != 0).sum()) == len(grams)
    assert sum(table.find(code, letters) != gram for code, letters, gram in grams) <= 4
    strangers = sum(table.find("de", letters) is not None for _, letters, _ in grams)
    assert strangers <= 4
    (far,) = [Letters.packed(1, [("en", "a", Gram(-99.0, -99.0))], 1).find("en", "a")]
    assert far == Gram(-255 * STEP, -255 * STEP), "what is too small to be stored is as small as can be"


@pytest.mark.parametrize("letters", ["", "a", "é", "यह ", "猫坐", "the cat"])
def test_an_n_gram_lies_where_files_have_it(letters: str) -> None:
    """Its place and its mark are hashes of its whole name."""
    table, name = Letters.packed(7, [("fr", letters, Gram(-1.0, -2.0))], 20), f"fr:{letters}".encode()
    place = zlib.crc32(name) % len(table.arrays[0])
    assert np.flatnonzero(table.arrays[0]).tolist() == [place]
    assert int(table.arrays[0][place]) & 0xFFFF == (binascii.crc_hqx(name, 0) or 1)
