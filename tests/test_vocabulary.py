"""Cutting and growing a tokenizer changes what it was asked to change, and nothing else."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import SPECIALS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train.vocabulary import (
    build,
    cut,
    grow,
    habits,
    learn_merges,
    resting_rows,
    sources,
    whole,
    words_together,
)

TEXT = {
    "en": ["the cat sat on the mat", "they said that the weather is there", "that's the other thing"],
    "de": ["die Straße führt über die Brücke", "das Mädchen größer als das Haus", "der Hund und die Katze"],
    "fr": ["l'été dernier était là", "où êtes-vous allés ce matin", "le cœur est là"],
    "es": ["mañana el señor está aquí", "la niña come una manzana", "qué pasa con el niño"],
    "hi": ["हिन्दी में बात करते हैं", "मैं हिन्दी में लिखता हूँ", "यह किताब मेरी है में हैं"],
    "zh": ["我们明天去北京", "你好我们是朋友", "明天你们去吗"],
}
LINES = [line for lines in TEXT.values() for line in lines]
Spec = dict[str, Any]


@pytest.fixture(scope="module")
def original() -> Spec:
    """A byte-level BPE as Whisper's: GPT-2's word pattern, learned on everything but Hindi."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    extra = ["<|ja|>", "<|translate|>"]  # Whisper has more special tokens than we keep
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 150, initial_alphabet=alphabet, special_tokens=[*SPECIALS, *extra], show_progress=False
    )
    backend.train_from_iterator([line for code in LANGUAGES if code != "hi" for line in TEXT[code]], trainer)
    spec = json.loads(backend.to_str())
    words = [token for token in spec["model"]["vocab"] if token not in {*SPECIALS, *extra}]
    spec["model"]["vocab"] = {token: i for i, token in enumerate(words)}  # Whisper's special tokens stand outside
    for i, token in enumerate(spec["added_tokens"], len(words)):
        token["id"] = i
    return spec


def pieces(spec: Spec, text: str) -> list[str]:
    return list(Backend.from_str(json.dumps(spec)).encode(text, add_special_tokens=False).tokens)


def ids_of(spec: Spec) -> dict[str, int]:
    return spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"]}


def test_words_keep_their_marks_and_other_languages_their_words(original: Spec) -> None:
    together = words_together(original)
    split = Backend.from_str(json.dumps(together)).pre_tokenizer
    assert len(split.pre_tokenize_str("हिन्दी में")) == 2
    assert len(Backend.from_str(json.dumps(original)).pre_tokenizer.pre_tokenize_str("हिन्दी में")) > 2
    for code in set(LANGUAGES) - {"hi"}:
        assert [pieces(together, t) for t in TEXT[code]] == [pieces(original, t) for t in TEXT[code]]


@given(st.lists(st.text("ab c", min_size=1), min_size=1, max_size=5), st.integers(0, 4))
def test_merges_are_those_of_counting_anew_each_time(lines: list[str], count: int) -> None:
    spec = json.loads(letters_only("abcĠ").to_str())
    words = [[*w] for line in lines for w, _ in pre_tokenizers.ByteLevel(False).pre_tokenize_str(line)]
    expected: list[tuple[str, str]] = []
    for _ in range(count):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            return  # nothing left to merge
        best = max(pairs, key=lambda p: (pairs[p], p))
        expected.append(best)
        words = [merge_once(word, best) for word in words]
    assert learn_merges(spec, lines, count) == expected


def letters_only(letters: str) -> Backend:
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def merge_once(word: list[str], pair: tuple[str, str]) -> list[str]:
    if len(word) < 2:
        return word
    if (word[0], word[1]) == pair:
        return [word[0] + word[1], *merge_once(word[2:], pair)]
    return [word[0], *merge_once(word[1:], pair)]


def test_growing_shortens_hindi_and_leaves_other_languages_alone(original: Spec) -> None:
    together = words_together(original)
    grown = grow(together, learn_merges(together, TEXT["hi"], 60))
    assert len(grown["model"]["vocab"]) == len(together["model"]["vocab"]) + 60
    for code, lines in TEXT.items():
        for line in lines:
            before, after = pieces(together, line), pieces(grown, line)
            if code == "hi":
                assert len(after) < 0.5 * len(before)
                assert "".join(after) == "".join(before)
            else:
                assert after == before


def test_growing_changes_no_id_and_not_its_argument(original: Spec) -> None:
    kept = json.dumps(original)
    grown = grow(original, [("à", "¤"), ("à¤", "¨")])
    assert json.dumps(original) == kept
    old, new = ids_of(original), ids_of(grown)
    assert {token: new[token] for token in old} == old
    assert sorted(new[token] for token in new.keys() - old.keys()) == [max(old.values()) + 1, max(old.values()) + 2]


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=6, unique=True), st.data())
def test_cutting_keeps_how_the_text_is_split(original: Spec, lines: list[str], data: st.DataObject) -> None:
    small = cut(original, lines)
    words = st.sampled_from([word for line in lines for word in line.split()])
    new_text = "".join(f" {word}" for word in data.draw(st.lists(words, max_size=5)))
    for text in [*lines, *(t for t in [new_text] if set(pieces(original, t)) <= small["model"]["vocab"].keys())]:
        assert pieces(small, text) == pieces(original, text)


def test_cut_ids_are_contiguous_with_the_specials_at_the_end(original: Spec, tmp_path: Path) -> None:
    small = cut(original, TEXT["en"])
    ids = ids_of(small)
    assert sorted(ids.values()) == list(range(len(ids)))
    assert [token for token, _ in sorted(ids.items(), key=lambda x: x[1])][-len(SPECIALS) :] == SPECIALS
    assert len(ids) < len(ids_of(original))
    order = [t for t in ids_of(original) if t in small["model"]["vocab"]]
    assert sorted(order, key=ids.__getitem__) == sorted(order, key=ids_of(original).__getitem__)
    (tmp_path / "tokenizer.json").write_text(json.dumps(small), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.size == len(ids)
    for line in LINES:
        assert loaded.decode(loaded.encode(line)) == line, "bytes always stay, so any text can still be written"


def test_rare_tokens_go_first(original: Spec) -> None:
    sizes = [len(ids_of(cut(original, LINES, min_count=n))) for n in (1, 2, 5, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 256 + len(SPECIALS), "bytes and special tokens stay"


def test_sources_spell_what_they_stand_for(original: Spec) -> None:
    together = words_together(original)
    grown = grow(together, learn_merges(together, TEXT["hi"], 40))
    new = cut(grown, LINES)
    spell = {i: token for token, i in ids_of(original).items()}
    rows = sources(together, new)
    assert len(rows) == len(ids_of(new))
    for token, i in ids_of(new).items():
        assert "".join(spell[j] for j in rows[i]) == token
        assert (len(rows[i]) == 1) == (token in ids_of(original))
    assert max(len(row) for row in rows) > 1, "the grown tokens have several"


def test_build_grows_then_cuts(original: Spec, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(original), encoding="utf-8")
    built = build(path, LINES, TEXT["hi"], merges=30, min_count=1)
    together = words_together(original)
    for code, lines in TEXT.items():
        if code != "hi":
            assert [pieces(built, t) for t in lines] == [pieces(together, t) for t in lines]
    assert all(len(pieces(built, t)) < len(pieces(together, t)) for t in TEXT["hi"])
    assert built["post_processor"] is None


def test_habits_are_the_shares_of_labels_in_each_language(tokenizer: Tokenizer) -> None:
    texts: dict[str, list[str]] = {code: [] for code in LANGUAGES} | {"en": ["the the cat"], "de": ["a a a a"]}
    table = habits(tokenizer, texts)
    assert table.shape == (len(LANGUAGES), tokenizer.size)
    assert table[:, tokenizer.blank].abs().max() == 0
    the = tokenizer.encode("the")[0]
    english = tokenizer.encode("the the cat")
    assert table[0, the].exp().item() == pytest.approx((english.count(the) + 1) / (len(english) + tokenizer.size))
    assert table[0, the] > table[1, the]
    assert table[2].unique().numel() == 2, "no text: every label is as usual as any other"


@pytest.mark.parametrize("lost", [0, 1, 40])
def test_a_lost_merge_is_given_back(original: Spec, lost: int) -> None:
    """As where a file's first line was taken for a header."""
    maimed = json.loads(json.dumps(original))
    del maimed["model"]["merges"][lost]
    mended, right = Backend.from_str(json.dumps(whole(maimed))), Backend.from_str(json.dumps(original))
    spoilt = Backend.from_str(json.dumps(maimed))
    texts = [line for line in LINES if spoilt.encode(line).ids != right.encode(line).ids]
    assert texts, "the loss is seen in these texts"
    assert [mended.encode(line).ids for line in texts] == [right.encode(line).ids for line in texts]


def test_a_tokenizer_that_lacks_nothing_stays_as_it_is(original: Spec) -> None:
    same = whole(original)
    assert [list(m) for m in same["model"]["merges"]] == [
        m.split(" ") if isinstance(m, str) else list(m) for m in original["model"]["merges"]
    ]
    assert same["model"]["vocab"] == original["model"]["vocab"]


def test_what_rests_is_all_but_the_words_of_a_script() -> None:
    assets = Path(__file__).parent.parent / "src" / "diffasr" / "assets" / "mini"
    mini = Tokenizer.load(assets / "tokenizer.json", letters=2)
    learns = (~resting_rows(mini, ["DEVANAGARI"])).nonzero()[:, 0].tolist()
    assert learns
    assert not set(learns) & set(mini.alphabet)
    assert all(re.fullmatch(r"\s*[\u0900-\u097f]+", mini.decode([token])) for token in learns)
    said = mini.encode("लड़का जाता है, the cat")
    assert [mini.decode([token]).strip() for token in said if token in learns] == ["जाता"]
