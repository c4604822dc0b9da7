"""Each normaliser agrees with forms worked out by hand in six languages, and obeys the laws of its kind."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.errors import OptionError
from diffasr.evaluate import normalise as module
from diffasr.evaluate.normalise import NORMALISERS, normalise
from diffasr.text import LANGUAGES

SENTENCES = {
    "en": "Don't stop — it's only 3.5 miles to O’Hare!",
    "de": "Größere Straßen führen über Köln, äh, Überlingen.",
    "fr": "L'été, où êtes-vous allés ? Cœur brisé, ça va.",
    "es": "¿Qué pasó mañana, señor Núñez? ¡Adiós, pingüino!",
    "hi": "हिन्दी में कृपया दो गिलास पानी लाइए, ज़रूर।",
    "zh": "我们明天去北京，好吗？漢語也可以。",
}
KA, NUKTA, QA = "\u0915", "\u093c", "\u0958"  # QA is KA and NUKTA in one
BASIC = [
    ("en", "Don't stop—it's 3.5 o'clock!", "dont stop its 3 5 oclock"),
    ("en", "  Well-known,\n“e-mail” & 50% ", "well known e mail 50"),
    ("en", "It’s ﬁne, `quoted´", "its fine quoted"),
    ("de", "Die Straße ist GRÖSSER: ÄÖÜ!", "die straße ist grösser äöü"),
    ("de", "U-Bahn-Fahrer „Jürgen“", "u bahn fahrer jürgen"),
    ("fr", "L'été, c’est où ?", "lété cest où"),
    ("fr", "l´eau du «Cœur»", "leau du cœur"),
    ("es", "¿Qué tal, señor? ¡Mañana!", "qué tal señor mañana"),
    ("hi", "हिन्दी में, नमस्ते।", "हिन्दी में नमस्ते"),
    ("hi", f"क्\u200dष {QA}", f"क्ष {KA}{NUKTA}"),  # the joiner goes; the dotted letter in its two parts
    ("zh", "漢語，你 好！", "汉语你好"),
    ("zh", "臺灣的電腦 １２３。", "台湾的电脑123"),
]
WHISPER = [
    ("en", "Don't stop, it's only 3.5 miles (sic)!", "do not stop it is only 3.5 miles"),
    ("en", "Mr. Brown paid twenty-five dollars, uh, for the colour TV.", "mister brown paid $25 for the color tv"),
    ("en", "He’ll take [noise] ５% of the $1,000 café", "he ll take 5% of the $1000 cafe"),  # ’ is no apostrophe here
    ("de", "Die Straße (neu) ist GRÖSSER: U\u0308bung 3,5!", "die straße ist grösser übung 3 5"),
    ("fr", "L'été, c’est 21 h <rire> au Cœur", "l été c est 21 h au cœur"),
    ("es", "¿Qué tal, señor Núñez? ¡Al 100%!", "qué tal señor núñez al 100"),
    ("hi", "हिन्दी में, नमस्ते।", "ह न द म नमस त"),  # i, virama, ii, e + anusvara, virama + e: all spaces
    ("hi", f"{QA}लम १२", f"{KA} लम १२"),
    ("zh", "漢語，你 好（笑）１２３！", "汉语你好笑123"),  # only half-width brackets take their content along
]
LEADERBOARD = [
    ("en", "We won't pay £20 for the theatre.", "we will not pay £20 for the theater"),
    ("en", "One hundred and one Dalmatians, hmm", "101 dalmatians"),
    ("de", "Die 21 Häuser (neu) kosten 10 000 Euro, z.B.", "die einundzwanzig häuser kosten zehntausend euro z b"),
    ("de", "Rund 1000000 Grüße", "rund eine Million grüße"),
    ("fr", "L'an 99, ça fait ８ œufs !", "l an quatre-vingt-dix-neuf ça fait huit œufs"),
    ("es", "¡El 15 de mañana, al 100%!", "el quince de mañana al cien"),
    ("es", "un " + "9" * 40, "un " + "9" * 40),  # past the largest Spanish word
    ("de", "9" * 5000, "9" * 5000),  # past the longest number that Python reads
    ("hi", f"हिन्दी में 25 {QA}लम, १२।", f"हिन्दी में 25 {KA}{NUKTA}लम १२"),
    ("hi", "मे\u00adरा", "मेरा"),  # a soft hyphen is neither a symbol nor part of a word
    ("zh", "臺灣的電腦 iPhone １５ [笑]。", "台湾的电脑iphone15"),
]
NONE = [
    ("en", "  Don't stop — 3.5! ", "Don't stop — 3.5!"),
    ("de", "Gro\u0308ße", "Größe"),
    ("fr", "L'e\u0301te\u0301 ?\n", "L'été ?"),
    ("es", "¿Man\u0303ana?", "¿Mañana?"),
    ("hi", f"{QA}लम, १२।", f"{KA}{NUKTA}लम, १२।"),
    ("zh", "臺灣的電腦 １２３。", "臺灣的電腦 １２３。"),
]
CASED = [
    ("en", " “Don’t stop” —  he\nsaid… ", '"Don\'t stop" - he said...'),
    ("en", "A `b´ C", "A 'b' C"),
    ("de", "„Größe“, U‑Bahn – ja!", '"Größe", U-Bahn - ja!'),
    ("fr", "« Où est-il ? » L’été !", '" Où est-il? " L\'été!'),
    ("es", "¿Qué tal, Señor ?", "¿Qué tal, Señor?"),
    ("hi", f"{QA}लम\u200d, १२ ।", f"{KA}{NUKTA}लम, १२ ।"),
    ("zh", "臺灣的 電腦，iPhone？好！是。", "台湾的电脑,iPhone?好!是."),
]
CASES = [
    (name, *case)
    for name, cases in zip(NORMALISERS, (BASIC, WHISPER, LEADERBOARD, NONE, CASED), strict=True)
    for case in cases
]


@pytest.mark.parametrize(("name", "language", "text", "expected"), CASES)
def test_forms_written_by_hand(name: str, language: str, text: str, expected: str) -> None:
    assert normalise(text, language, name) == expected


def test_by_hand_means_all_six_languages_by_all_five() -> None:
    assert {(name, language) for name, language, *_ in CASES} == {(n, code) for n in NORMALISERS for code in LANGUAGES}


@given(st.sampled_from(list(LANGUAGES)), st.data())
def test_basic_forms_are_stable_and_plain(language: str, data: st.DataObject) -> None:
    text = data.draw(st.text(SENTENCES[language] + " .,!?'-–\t\n"))
    once = normalise(text, language)
    assert normalise(text, language, "basic") == once, "the default"
    assert normalise(once, language) == once
    assert normalise(unicodedata.normalize("NFD", text), language) == once
    assert normalise(f" {text.upper().lower()}?! ", language) == normalise(text.upper(), language)
    assert once == once.lower().strip()
    assert "  " not in once
    assert all(char == " " or unicodedata.category(char)[0] in "LMN" for char in once)


@given(st.sampled_from(list(LANGUAGES)), st.data())
def test_cased_keeps_what_basic_drops_and_changes_nothing_else(language: str, data: st.DataObject) -> None:
    text = data.draw(st.text(SENTENCES[language] + " .,!?'’“”–。，"))
    once = normalise(text, language, "cased")
    assert normalise(once, language, "cased") == once
    assert normalise(once, language) == normalise(text, language)
    assert language == "zh" or sum(map(str.isupper, once)) == sum(map(str.isupper, text))


@given(st.sampled_from(NORMALISERS), st.sampled_from([*LANGUAGES, "it"]), st.text(max_size=20))
def test_any_text_has_a_form_without_outer_space(name: str, language: str, text: str) -> None:
    found = normalise(text, language, name)
    assert found == found.strip()
    assert name == "none" or "  " not in found
    if language == "zh" and name != "none":
        assert not any(char.isspace() for char in found)


@given(st.text(SENTENCES["hi"], max_size=30))
def test_hindi_marks_survive_all_but_whisper(text: str) -> None:
    def marks(form: str) -> int:
        return sum(unicodedata.category(char)[0] == "M" for char in form)

    whole = marks(unicodedata.normalize("NFC", text))
    assert [marks(normalise(text, "hi", name)) for name in NORMALISERS] == [whole, 0, whole, whole, whole]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(OptionError, match=r"'Basic'.*basic, whisper, leaderboard, none"):
        normalise("a", "en", "Basic")


@pytest.mark.parametrize(
    ("package", "name", "language", "text"),
    [
        ("zhconv", "basic", "zh", "你好"),
        ("num2words", "leaderboard", "de", "12"),
        ("whisper_normalizer.english", "whisper", "en", "a"),
    ],
)
def test_without_its_package_it_says_what_to_install(
    package: str, name: str, language: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._package_rules.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    assert normalise("Hello", "en") == "hello", "the basic rules need a package for Mandarin alone"
    with pytest.raises(OptionError, match=r"diffasr\[evaluate\]"):
        normalise(text, language, name)
