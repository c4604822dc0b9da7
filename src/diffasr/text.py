"""Words in, token ids out, and back: tokenizer, languages, and the one normaliser that scores are quoted with.

The tokenizer is a ``tokenizer.json`` (https://github.com/huggingface/tokenizers); ours is Whisper's byte-level BPE cut
to six languages. Special tokens have Whisper's names.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from diffasr.errors import ModelError, OptionError

LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "hi": "Hindi",
    "zh": "Mandarin",
}
END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASK = "<|transcribe|>"
PLAIN = "<|notimestamps|>"
PREFIX_TOKENS = (END, START, TASK, PLAIN)


def check_language(language: str | None) -> str | None:
    """The language code as given, or None; raises OptionError for a code that the model does not know."""
    if language is not None and language not in LANGUAGES:
        raise OptionError(f"language {language!r} is not known; choose one of {', '.join(LANGUAGES)}, or leave it out")
    return language


class Tokenizer:
    """Text to ids and back, with the ids that the networks need by name."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.size = backend.get_vocab_size(with_added_tokens=True)
        self.end = self._id(END)
        self.start = self._id(START)
        self.task = self._id(TASK)
        self.plain = self._id(PLAIN)
        self.languages = {code: self._id(f"<|{code}|>") for code in LANGUAGES}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a ``tokenizer.json``; raises ModelError where there is none or it lacks a token that we need."""
        if not Path(path).is_file():
            raise ModelError(f"no tokenizer at {path}: a model folder needs a tokenizer.json")
        return cls(Backend.from_file(os.fspath(path)))

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ModelError(f"the tokenizer has no token {token}: it is not one that diffasr made")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` (NFC, outer white space dropped), no special tokens."""
        clean = unicodedata.normalize("NFC", text).strip()
        return list(self.backend.encode(clean, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` up to the first end token; other special tokens and broken bytes are dropped."""
        kept: list[int] = []
        for i in ids:
            if i == self.end:
                break
            kept.append(int(i))
        return self.backend.decode(kept, skip_special_tokens=True).replace("\ufffd", "").strip()

    def spell(self, ids: Iterable[int]) -> str:
        """``ids`` as the vocabulary writes them, without spaces: unlike text it adds up, half a character included."""
        return "".join(self.backend.id_to_token(i) or "" for i in ids).replace("\u0120", "").replace("\u2581", "")

    def prefix(self, language: str) -> list[int]:
        """The clean tokens that stand before a canvas: start, language, task, no timestamps."""
        return [self.start, self.languages[language], self.task, self.plain]


def normalise(text: str, language: str) -> str:
    """Lower case, no punctuation or symbols, single spaces; Mandarin simplified and without spaces.

    Marks (Unicode category M) stay: in Hindi they are vowels. Apostrophes go, hyphens become spaces.
    """
    folded = unicodedata.normalize("NFKC", text.replace("´", "'")).lower()  # NFKC would make ´ a space and a mark
    if language == "zh":
        folded = _simplify(folded)
    kept = []
    for char in folded:
        kind = unicodedata.category(char)[0]
        if kind in "LMN":
            kept.append(char)
        elif char not in "'’`\u200c\u200d":
            kept.append(" ")
    words = "".join(kept).split()
    return ("" if language == "zh" else " ").join(words)


def _simplify(text: str) -> str:
    try:
        from zhconv import convert  # an extra: only scoring needs it
    except ModuleNotFoundError as error:
        raise OptionError("scoring Mandarin needs zhconv: pip install 'diffasr[evaluate]'") from error
    return str(convert(text, "zh-cn"))


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions that turn one sequence into the other (Levenshtein)."""
    previous = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        current = [i]
        for j, got in enumerate(hypothesis, 1):
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (expected != got)))
        previous = current
    return previous[-1]
