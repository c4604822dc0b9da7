"""Words in, token ids out, and back: the tokenizer and the languages.

The tokenizer is a ``tokenizer.json`` (https://github.com/huggingface/tokenizers); ours is Whisper's byte-level BPE cut
to six languages. Special tokens have Whisper's names.
"""

import json
import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
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
SPACES = "\u0120\u2581"
"""How vocabularies write a space: byte-level ones, and those of sentencepiece."""
PREFIX_TOKENS = (END, START, TASK, PLAIN)


_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_BYTES = {chr(byte): bytes((byte,)) for byte in _PRINTED}
_BYTES |= {chr(0x100 + n): bytes((byte,)) for n, byte in enumerate(_OTHERS)} | {"\u2581": b" "}
"""What each character of a byte-level vocabulary stands for: a byte that prints is written as itself, the others as
the letters from U+0100 on."""


def check_language(language: str | None) -> str | None:
    """The language code as given, or None; raises OptionError for a code that the model does not know."""
    if language is not None and language not in LANGUAGES:
        raise OptionError(f"language {language!r} is not known; choose one of {', '.join(LANGUAGES)}, or leave it out")
    return language


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How tokens and CTC's labels are written: as the vocabulary does, so that writings add up."""

    names: Sequence[str]
    """Of each token."""
    labels: Mapping[str, int]
    """The label of each writing; the blank has none."""
    mirrored: Mapping[str, int]
    """The same, the writings from right to left."""
    longer: Mapping[str, Sequence[int]]
    """The labels that begin with a writing and go on."""
    longest: int
    """Characters of the longest label."""

    @cached_property
    def writings(self) -> list[bytes]:
        """Of each label what it writes, see ``in_bytes``; the blank nothing."""
        found = dict.fromkeys(range(1 + max(self.labels.values(), default=0)), b"")
        found |= {label: self.in_bytes(writing) for writing, label in self.labels.items()}
        return [found[label] for label in sorted(found)]

    def in_bytes(self, writing: str) -> bytes:
        """What is written, in UTF-8; of a part of a letter that part."""
        return b"".join(_BYTES.get(char) or char.encode() for char in writing)


class Tokenizer:
    """Text to ids and back, with the ids that the networks need by name.

    CTC has labels of its own: the tokens of at most ``letters`` letters (a wide character counts as two), the end
    token for its blank. Few and short ones are learned from hours of speech where a whole vocabulary is not, and any
    word can be spelled with them. ``letters`` 0: every token is a label.
    """

    def __init__(self, backend: Backend, *, letters: int = 0) -> None:
        self.backend = backend
        self.size = backend.get_vocab_size(with_added_tokens=True)
        self.end = self._id(END)
        self.start = self._id(START)
        self.task = self._id(TASK)
        self.plain = self._id(PLAIN)
        self.languages = {code: self._id(f"<|{code}|>") for code in LANGUAGES}
        self.has_letters = letters > 0
        self.alphabet = self._alphabet(letters)
        self.blank = self.alphabet.index(self.end)
        self._speller = self._short() if letters else backend

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, letters: int = 0) -> "Tokenizer":
        """Read a ``tokenizer.json``; raises ModelError where there is none or it lacks a token that we need."""
        if not Path(path).is_file():
            raise ModelError(f"no tokenizer at {path}: a model folder needs a tokenizer.json")
        try:
            backend = Backend.from_file(os.fspath(path))
        except Exception as error:  # tokenizers raises no other kind
            raise ModelError(f"{path} is no tokenizer: {error}; fetch the model again") from error
        return cls(backend, letters=letters)

    def _alphabet(self, letters: int) -> list[int]:
        """The token behind each CTC label."""
        if letters == 0:
            return list(range(self.size))
        special = self.backend.get_added_tokens_decoder()
        texts = self.backend.decode_batch([[i] for i in range(self.size)])  # half a character becomes one \ufffd
        short = [(i, t) for i, t in enumerate(text.strip() for text in texts) if len(t) <= letters and i not in special]
        return [
            self.end,
            *(i for i, t in short if sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in t) <= letters),
        ]

    def _short(self) -> Backend:
        """The same tokenizer, merging no further than the alphabet goes, and of no more tokens."""
        spec = json.loads(self.backend.to_str())
        kept = {self.backend.id_to_token(i): i for i in self.alphabet}
        special = {token.content: i for i, token in self.backend.get_added_tokens_decoder().items()}
        spec["model"]["vocab"] = kept | special  # a special token that is not among the others gets another id
        pairs = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
        spec["model"]["merges"] = [m for m in pairs if {m[0], m[1], m[0] + m[1]} <= kept.keys()]
        return Backend.from_str(json.dumps(spec))

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {token: label for label, token in enumerate(self.alphabet)}

    @cached_property
    def openings(self) -> list[int]:
        """The CTC label that each token begins with; the blank for special and empty ones."""
        special = self.backend.get_added_tokens_decoder()
        words = ["" if i in special else self.backend.id_to_token(i) or "" for i in range(self.size)]
        return [self._labels[self._speller.model.tokenize(word)[0].id] if word else self.blank for word in words]

    @cached_property
    def spelling(self) -> Spelling | None:
        """How tokens and labels are written; None where every token is a label, which is too many to spell with."""
        if not self.has_letters:
            return None
        names = [self.backend.id_to_token(i) or "" for i in range(self.size)]
        labels = {names[token]: label for label, token in enumerate(self.alphabet) if label != self.blank}
        longer: dict[str, list[int]] = {}
        for writing, label in labels.items():
            for size in range(1, len(writing)):
                longer.setdefault(writing[:size], []).append(label)
        mirrored = {writing[::-1]: label for writing, label in labels.items()}
        longest = max(map(len, labels), default=1)
        return Spelling(names=names, labels=labels, mirrored=mirrored, longer=longer, longest=longest)

    def pieces(self, text: str, *, goes_on: bool = False) -> list[int]:
        """CTC labels of ``text`` (NFC, outer white space dropped); where it ``goes_on``, with a space before it."""
        clean = " " * goes_on + unicodedata.normalize("NFC", text).strip()
        ids = self._speller.encode(clean, add_special_tokens=False).ids
        return [self._labels[i] for i in ids if i in self._labels]

    def words(self, text: str, language: str) -> list[tuple[str, int, int]]:
        """The words of ``text`` (Mandarin: its characters, with their punctuation), each with the numbers of its first
        and its last label in ``pieces``."""
        clean = unicodedata.normalize("NFC", text).strip()
        found = self._speller.encode(clean, add_special_tokens=False)
        offsets = [span for i, span in zip(found.ids, found.offsets, strict=True) if i in self._labels]
        pattern = r"(?:[A-Za-z0-9]+|[^\W_])[^\w\s]*|[^\w\s]+|_" if language == "zh" else r"\S+"
        words = []
        for match in re.finditer(pattern, clean):
            mine = [n for n, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
            if mine:
                words.append((match.group(), mine[0], mine[-1]))
        return words

    def joined(self, labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """The text of CTC labels in whole tokens, and for each token the number of the label that it begins in."""
        ids = [self.alphabet[label] for label in labels]
        spelled = [self.backend.id_to_token(i) or "" for i in ids]
        tokens = self.encode(self.decode(ids))
        ends = list(accumulate(len(s) for s in spelled))
        places = [0, *accumulate(len(self.backend.id_to_token(i) or "") for i in tokens)]
        whole = "".join(spelled)
        first = len(whole) - len(whole.lstrip(SPACES))  # outer spaces are no part of the text
        scale = len(whole.strip(SPACES)) / places[-1] if places[-1] else 1.0  # 1, but where broken bytes were dropped
        return tokens, [min(bisect_right(ends, first + place * scale), len(ends) - 1) for place in places[:-1]]

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ModelError(f"the tokenizer has no token {token}: it is not one that diffasr made")
        return int(found)

    def encode(self, text: str, *, goes_on: bool = False) -> list[int]:
        """Ids of ``text`` (NFC, outer white space dropped), no special tokens; ``goes_on``: with a space before it."""
        clean = " " * goes_on + unicodedata.normalize("NFC", text).strip()
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
        return "".join(self.backend.id_to_token(i) or "" for i in ids).translate(dict.fromkeys(map(ord, SPACES)))

    def prefix(self, language: str) -> list[int]:
        """The clean tokens that stand before a canvas: start, language, task, no timestamps."""
        return [self.start, self.languages[language], self.task, self.plain]
