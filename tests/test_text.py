"""Six languages survive the tokenizer."""

import unicodedata
from importlib import resources
from pathlib import Path

import pytest
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from diffasr.diffusion.ctc import consumed
from diffasr.errors import ModelError, OptionError
from diffasr.text import LANGUAGES, PREFIX_TOKENS, Tokenizer, check_language

SENTENCES = {
    "en": "Don't stop — it's only 3.5 miles to O’Hare!",
    "de": "Größere Straßen führen über Köln, äh, Überlingen.",
    "fr": "L'été, où êtes-vous allés ? Cœur brisé, ça va.",
    "es": "¿Qué pasó mañana, señor Núñez? ¡Adiós, pingüino!",
    "hi": "हिन्दी में कृपया दो गिलास पानी लाइए, ज़रूर।",
    "zh": "我们明天去北京，好吗？漢語也可以。",
}


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_labels_and_tokens_write_adds_up_to_the_text_in_bytes(language: str) -> None:
    path = Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json"
    short, text = Tokenizer.load(path, letters=2), unicodedata.normalize("NFC", SENTENCES[language])
    spelling = short.spelling
    assert spelling is not None
    assert len(spelling.writings) == len(short.alphabet)
    assert spelling.writings[short.blank] == b""
    assert b"".join(spelling.writings[label] for label in short.pieces(text)) == text.encode()
    assert b"".join(spelling.in_bytes(spelling.names[token]) for token in short.encode(text)) == text.encode()
    assert b"".join(map(spelling.in_bytes, "".join(spelling.names[t] for t in short.encode(text)))) == text.encode()


@pytest.mark.parametrize("language", LANGUAGES)
def test_ctc_spells_with_short_labels_what_the_canvas_writes_in_whole_tokens(language: str) -> None:
    path = Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json"
    short, text = Tokenizer.load(path, letters=2), SENTENCES[language]
    labels = short.pieces(text)
    spelled = [short.backend.decode([short.alphabet[label]]) for label in labels]
    assert short.decode(short.alphabet[label] for label in labels) == text
    assert all(len(s.strip()) <= 2 for s in spelled)
    assert all(len(s.strip()) <= 1 for s in spelled if "\u3400" <= s.strip()[:1] <= "\u9fff")
    tokens, begins = short.joined(labels)
    assert tokens == short.encode(text)
    assert len(labels) > len(tokens) if language != "zh" else len(labels) >= len(tokens)
    assert begins == sorted(begins)
    for token, begin in zip(tokens, begins, strict=True):
        start = short.backend.decode([token]).strip()[:1]
        assert not start.isascii() or start in spelled[begin], "the label that holds the token's first letter"
    assert all(spelled[begin].strip()[:1] == short.backend.decode([t]).strip()[:1] for t, begin in
               zip([short.encode(text)[0]], begins[:1], strict=True))  # fmt: skip


def test_every_label_is_a_short_token_and_the_blank_comes_first() -> None:
    path = Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json"
    one, two = (Tokenizer.load(path, letters=n) for n in (1, 2))
    assert (one.blank, two.blank) == (0, 0)
    assert one.alphabet[0] == two.alphabet[0] == two.end
    assert set(one.alphabet) < set(two.alphabet) < set(range(two.size))
    assert not set(two.alphabet[1:]) & {two.start, two.task, two.plain, *two.languages.values()}
    assert two.openings[two.start] == two.blank
    this = two.encode("this")[0]
    assert two.backend.decode([two.alphabet[two.openings[this]]]) == "th"


def test_without_a_limit_every_token_is_a_label(tokenizer: Tokenizer) -> None:
    assert tokenizer.alphabet == list(range(tokenizer.size))
    assert tokenizer.blank == tokenizer.end
    assert tokenizer.pieces("the cat") == tokenizer.encode("the cat")
    assert tokenizer.joined(tokenizer.encode("the cat")) == (tokenizer.encode("the cat"), [0, 1, 2, 3, 4])
    assert tokenizer.joined([]) == ([], [])


def test_outer_spaces_and_broken_bytes_that_ctc_heard_move_nothing(mini: Tokenizer) -> None:
    inner = mini.encode("ja nein")
    space, broken = mini.encode("a b")[1:] and mini.backend.token_to_id("\u0120"), mini.backend.token_to_id("\u00e4")
    tokens, begins = mini.joined([space, *inner])
    assert (tokens, begins) == (inner, [1 + n for n in range(len(inner))])
    tokens, begins = mini.joined([*inner, broken])
    assert tokens == inner
    assert begins[0] == 0
    assert begins == sorted(begins)


def test_special_tokens_are_distinct_and_in_whispers_order(tokenizer: Tokenizer) -> None:
    specials = [tokenizer.end, tokenizer.start, tokenizer.task, tokenizer.plain, *tokenizer.languages.values()]
    assert len(set(specials)) == len(specials)
    assert all(0 <= i < tokenizer.size for i in specials)
    assert tokenizer.prefix("hi") == [tokenizer.start, tokenizer.languages["hi"], tokenizer.task, tokenizer.plain]


def test_half_a_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ', encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_missing_file_or_token_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ModelError, match=r"<\|endoftext\|>"):
        Tokenizer(Backend(models.BPE(vocab={"a": 0}, merges=[])))


def test_languages_are_checked() -> None:
    assert [check_language(code) for code in (*LANGUAGES, None)] == [*LANGUAGES, None]
    with pytest.raises(OptionError, match=r"'xx'.*en, de, fr"):
        check_language("xx")


def test_the_tiny_tokenizer_of_these_tests_is_one_of_ours() -> None:
    tiny = tiny_tokenizer()
    assert tiny.size == 40
    assert tiny.decode(tiny.encode("the cat and a dog")) == "the cat and a dog"
    assert len(tiny.encode("the a")) == 2


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("en", " Don't stop, now! ", ["Don't", "stop,", "now!"]),
        ("de", "Straßenbahnhaltestelle an", ["Straßenbahnhaltestelle", "an"]),
        ("hi", "हिन्दी में ज़रूर।", ["हिन्दी", "में", "ज़रूर।"]),
        ("zh", "我们去KTV，好吗？", ["我", "们", "去", "KTV，", "好", "吗？"]),
        ("en", "", []),
    ],
)
@pytest.mark.parametrize("letters", [0, 2])
def test_words_know_their_labels(language: str, text: str, words: list[str], letters: int) -> None:
    path = Path(str(resources.files("diffasr"))) / "assets" / "mini" / "tokenizer.json"
    tokenizer = Tokenizer.load(path, letters=letters)
    found = tokenizer.words(text, language)
    assert [unicodedata.normalize("NFC", w) for w in words] == [w for w, _, _ in found]
    labels = tokenizer.pieces(text)
    spelled = [tokenizer.decode([tokenizer.alphabet[label] for label in labels[a : b + 1]]) for _, a, b in found]
    if letters:
        assert spelled == [w for w, _, _ in found]
        assert [a for _, a, _ in found] == sorted(a for _, a, _ in found)
    assert all(0 <= a <= b < len(labels) for _, a, b in found)
