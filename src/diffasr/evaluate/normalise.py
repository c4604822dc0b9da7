"""A transcript in, the form that is scored out, by one of five named sets of rules.

``basic``: ours, and the default. ``whisper``: what papers since Whisper report (arXiv:2212.04356, appendix C), from
the package whisper-normalizer; outside English it makes every mark (Unicode category M) a space, which breaks Hindi
words to pieces, so never quote it alone there. ``leaderboard``: huggingface/open_asr_leaderboard, normalizer/
normalizer.py and data_utils.py as they stood in 2026; its English rules began as Whisper's, which stand here, and have
grown since (fillers, clock times, acronyms); its Mandarin ones write numbers in characters, ours leave the digits.
``none``: composed (NFC), without outer white space, else as it stands. ``cased``: ours, for scores with case and
punctuation: only what looks the same on paper is made the same.
"""

import re
import unicodedata
import warnings
from collections.abc import Callable
from functools import cache

from diffasr.errors import OptionError

NORMALISERS: tuple[str, ...] = ("basic", "whisper", "leaderboard", "none", "cased")
_ALIKE = str.maketrans(
    dict.fromkeys("’`", "'") | dict.fromkeys("“”„«»", '"') | dict.fromkeys("–—‐", "-") | {"。": ".", "、": ","}
)


def normalise(text: str, language: str, name: str = "basic") -> str:
    """``text`` by the rules called ``name``, outer white space dropped; Mandarin is simplified except by ``none``.

    ``language`` is a code such as ``hi``; one that the model does not know gets the rules common to all. Mandarin loses
    its spaces, again except by ``none``. Raises OptionError for an unknown name, or where a package is missing.
    """
    match name:
        case "basic":
            return _basic(text, language)
        case "whisper":
            return _whisper(text, language)
        case "leaderboard":
            return _leaderboard(text, language)
        case "none":
            return unicodedata.normalize("NFC", text).strip()
        case "cased":
            return _cased(text, language)
    raise OptionError(f"normaliser {name!r} is not known; choose one of {', '.join(NORMALISERS)}")


def _basic(text: str, language: str) -> str:
    """Lower case, no punctuation or symbols, single spaces.

    Marks stay: in Hindi they are vowels. Apostrophes go, hyphens become spaces.
    """
    folded = unicodedata.normalize("NFKC", text.replace("´", "'")).lower()  # NFKC would make ´ a space and a mark
    kept = []
    for char in folded:
        kind = unicodedata.category(char)[0]
        if kind in "LMN":
            kept.append(char)
        elif char not in "'’`\u200c\u200d":
            kept.append(" ")
    return _tidy("".join(kept), language)


def _cased(text: str, language: str) -> str:
    """Case and punctuation as they stand, but one kind of each quote and dash, full-width marks as half-width ones, and
    no space before a mark, as French has it."""
    alike = unicodedata.normalize("NFKC", text.replace("´", "'")).translate(_ALIKE)
    plain = alike.replace("\u200c", "").replace("\u200d", "")
    return _tidy(re.sub(r"\s+([,.;:?!])", r"\1", plain), language)


def _whisper(text: str, language: str) -> str:
    """Whisper's English rules, or its basic ones."""
    return _tidy(_package_rules("english" if language == "en" else "basic")(text), language)


def _leaderboard(text: str, language: str) -> str:
    """Whisper's English rules, or the leaderboard's multilingual ones: marks kept, whole numbers written as words.

    The words come last, as num2words writes them: with the hyphens of French and the capitals of German.
    """
    if language == "en":
        return _whisper(text, language)
    rules = _package_rules("marks")
    import regex  # type: ignore[import-untyped, unused-ignore]  # whisper-normalizer needs it; its \w has marks

    clean = _tidy(regex.sub(r"[^\w\s]", "", rules(text)), language)
    joined = re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", clean)  # 10 000
    return re.sub(r"\d+", lambda found: _in_words(found.group(), language), joined)


def _in_words(digits: str, language: str) -> str:
    """A whole number in words; as it stands where num2words knows not the language, or no word so large."""
    try:
        import num2words  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise _missing("by the leaderboard's rules", "num2words") from error
    if language not in num2words.CONVERTER_CLASSES:
        return digits
    try:
        return str(num2words.num2words(int(digits), lang=language))
    except (OverflowError, ValueError):
        return digits


@cache
def _package_rules(kind: str) -> Callable[[str], str]:
    """Whisper's rules from the package whisper-normalizer; ``marks`` are the basic ones with category M kept."""
    with warnings.catch_warnings(action="ignore"):  # a docstring's stray backslash, told when Python compiles it
        try:
            from whisper_normalizer.basic import (  # type: ignore[import-untyped, unused-ignore]
                BasicTextNormalizer,
            )
            from whisper_normalizer.english import (  # type: ignore[import-untyped, unused-ignore]
                EnglishTextNormalizer,
            )
        except ModuleNotFoundError as error:
            raise _missing("by Whisper's rules", "whisper-normalizer") from error
    rules: Callable[[str], str] = (
        EnglishTextNormalizer() if kind == "english" else BasicTextNormalizer(preserve_marks=kind == "marks")
    )
    return rules


def _tidy(text: str, language: str) -> str:
    """Single spaces; Mandarin in simplified characters and without spaces, so that its size is its characters."""
    if language != "zh":
        return " ".join(text.split())
    try:
        from zhconv import convert
    except ModuleNotFoundError as error:
        raise _missing("Mandarin", "zhconv") from error
    return "".join(convert(text, "zh-cn").split())


def _missing(what: str, package: str) -> OptionError:
    return OptionError(f"normalising {what} needs {package}: pip install 'diffasr[evaluate]'")
