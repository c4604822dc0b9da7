"""Six languages survive the tokenizer, and scores do not depend on punctuation, case or script variants."""

import unicodedata
from importlib import resources
from pathlib import Path

import pytest
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from diffasr.diffusion.ctc import consumed
from diffasr.errors import ModelError, OptionError
from diffasr.text import LANGUAGES, PREFIX_TOKENS, Tokenizer, check_language, edit_distance, normalise

SENTENCES = {
    "en": "Don't stop — it's only 3.5 miles to O’Hare!",
    "de": "Größere Straßen führen über Köln, äh, Überlingen.",
    "fr": "L'été, où êtes-vous allés ? Cœur brisé, ça va.",
    "es": "¿Qué pasó mañana, señor Núñez? ¡Adiós, pingüino!",
    "hi": "हिन्दी में कृपया दो गिलास पानी लाइए, ज़रूर।",
    "zh": "我们明天去北京，好吗？漢語也可以。",
}
SCRIPTS = ["abc '", "äöüßẞ", "éèçœ", "ñáí¿", "कखग़िी", "汉漢字语語"]


@pytest.fixture(scope="module")
def mini() -> Tokenizer:
    return Tokenizer.load(Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_comes_back_as_it_was(mini: Tokenizer, language: str) -> None:
    text = SENTENCES[language]
    ids = mini.encode(text)
    assert mini.decode(ids) == text
    assert mini.decode([*ids, mini.end, *mini.encode("never read")]) == text
    assert mini.decode([*mini.prefix(language), *ids]) == text, "special tokens are not text"
    assert len(ids) <= len(text.encode()), "a token is at least a byte"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd<")))
def test_any_text_comes_back_composed_and_stripped(text: str) -> None:
    path = Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json"
    mini = _cached(path)
    assert mini.decode(mini.encode(text)) == unicodedata.normalize("NFC", text).strip()


def _cached(path: Path, loaded: dict[Path, Tokenizer] = {}) -> Tokenizer:  # noqa: B006 - a cache
    if path not in loaded:
        loaded[path] = Tokenizer.load(path)
    return loaded[path]


def test_composed_and_decomposed_letters_are_the_same_tokens(mini: Tokenizer) -> None:
    for text in SENTENCES.values():
        assert mini.encode(unicodedata.normalize("NFD", text)) == mini.encode(text)


def test_broken_bytes_are_dropped(mini: Tokenizer) -> None:
    first_byte = mini.backend.token_to_id("ä")  # 0xE4 in the byte alphabet: opens a three-byte letter
    assert mini.decode([*mini.encode("ja"), first_byte]) == "ja"


@given(st.text("abc 饕餮ï", max_size=6), st.integers(0, 20))
def test_spelling_adds_up_where_text_does_not(text: str, cut: int) -> None:
    """Half a character is no text, but it is spelt: so what is written can be found again in what was heard."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # a token a byte
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*PREFIX_TOKENS, *(f"<|{code}|>" for code in LANGUAGES)])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode(text)
    start, rest = ids[:cut], ids[cut:]
    assert tokenizer.spell(start) + tokenizer.spell(rest) == tokenizer.spell(ids)
    assert tokenizer.decode(ids) == text.strip()
    spaces = sum(tokenizer.spell([i]) == "" for i in rest)
    assert len(tokenizer.spell(rest)) == len(rest) - spaces
    if " " not in text:
        assert consumed(tokenizer.spell(start), [tokenizer.spell([i]) for i in ids]) == len(start)


def test_special_tokens_are_distinct_and_in_whispers_order(tokenizer: Tokenizer) -> None:
    specials = [tokenizer.end, tokenizer.start, tokenizer.task, tokenizer.plain, *tokenizer.languages.values()]
    assert len(set(specials)) == len(specials)
    assert all(0 <= i < tokenizer.size for i in specials)
    assert tokenizer.prefix("hi") == [tokenizer.start, tokenizer.languages["hi"], tokenizer.task, tokenizer.plain]


def test_a_missing_file_or_token_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match=r"<\|endoftext\|>"):
        Tokenizer(Backend(models.BPE(vocab={"a": 0}, merges=[])))


def test_languages_are_checked() -> None:
    assert [check_language(code) for code in (*LANGUAGES, None)] == [*LANGUAGES, None]
    with pytest.raises(OptionError, match=r"'xx'.*en, de, fr"):
        check_language("xx")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "Don't stop—it's 3.5 o'clock!", "dont stop its 3 5 oclock"),
        ("en", "  Well-known,\n“e-mail” & 50% ", "well known e mail 50"),
        ("en", "It’s ﬁne, `quoted´", "its fine quoted"),
        ("de", "Die Straße ist GRÖSSER: ÄÖÜ!", "die straße ist grösser äöü"),
        ("de", "U-Bahn-Fahrer „Jürgen“", "u bahn fahrer jürgen"),
        ("fr", "L'été, c’est où ?", "lété cest où"),
        ("fr", "l´eau du «Cœur»", "leau du cœur"),
        ("es", "¿Qué tal, señor? ¡Mañana!", "qué tal señor mañana"),
        ("hi", "हिन्दी में, नमस्ते।", "हिन्दी में नमस्ते"),
        ("hi", "क्\u200dष \u0958", "क्ष \u0915\u093c"),  # the joiner goes; the dotted letter in its two parts
        ("zh", "漢語，你 好！", "汉语你好"),
        ("zh", "臺灣的電腦 １２３。", "台湾的电脑123"),
    ],
)
def test_normal_forms_written_by_hand(language: str, text: str, expected: str) -> None:
    assert normalise(text, language) == expected


@given(st.sampled_from(list(LANGUAGES)), st.data())
def test_normal_forms_are_stable_and_plain(language: str, data: st.DataObject) -> None:
    text = data.draw(st.text(SENTENCES[language] + " .,!?'-–\t\n"))
    once = normalise(text, language)
    assert normalise(once, language) == once
    assert normalise(unicodedata.normalize("NFD", text), language) == once
    assert normalise(f" {text.upper().lower()}?! ", language) == normalise(text.upper(), language)
    assert once == once.lower().strip()
    assert "  " not in once
    assert all(char == " " or unicodedata.category(char)[0] in "LMN" for char in once)


def test_mandarin_without_zhconv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zhconv", None)
    assert normalise("Hello", "en") == "hello", "other languages do not need it"
    with pytest.raises(OptionError, match=r"diffasr\[evaluate\]"):
        normalise("你好", "zh")


@given(st.sampled_from(SCRIPTS), st.data())
def test_edit_distance_agrees_with_rapidfuzz(script: str, data: st.DataObject) -> None:
    texts = st.text(script, max_size=12)
    reference, hypothesis = data.draw(texts), data.draw(texts)
    assert edit_distance(reference, hypothesis) == Levenshtein.distance(reference, hypothesis)
    assert edit_distance(reference.split(), hypothesis.split()) == Levenshtein.distance(
        reference.split(), hypothesis.split()
    ), "words work as characters do"
    assert edit_distance(reference, reference) == 0
    assert edit_distance("", hypothesis) == len(hypothesis)


def test_the_tiny_tokenizer_of_these_tests_is_one_of_ours() -> None:
    tiny = tiny_tokenizer()
    assert tiny.size == 40
    assert tiny.decode(tiny.encode("the cat and a dog")) == "the cat and a dog"
    assert len(tiny.encode("the a")) == 2
