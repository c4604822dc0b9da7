"""Words that a recording is likely to hold in; where CTC hears one of them, the canvas starts from it and keeps it.

Two judges must agree before a word is written. CTC's posterior must come near it in the place of whole words that it
heard: such a word takes their place in the canvas. The denoiser then reads it with a bias, and may still turn it down.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffasr.diffusion.align import align
from diffasr.diffusion.ctc import Path
from diffasr.diffusion.spot import losses, spot
from diffasr.errors import OptionError
from diffasr.places import Place, Reader
from diffasr.text import SPACES, Tokenizer

MOST_WORDS = 2000
"""Entries of a list. More of them are found by chance more often, and take longer to look for."""


@dataclass(frozen=True, kw_only=True)
class Hotwords:
    """Words whose chance is raised where the sound speaks for them."""

    words: tuple[str, ...]
    """As they shall be written; a name of several words is one of them."""
    threshold: float = 2.5
    """Nats a CTC label that a word may lose against what CTC hears best, to be considered at all. 0: only what CTC
    hears anyway."""
    bias: float = 4.0
    """Nats added to the denoiser's logits for the tokens of a word that was considered."""

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise OptionError(f"hotwords must be a list of words, got the text {self.words!r}: put it in a list")
        bad = [word for word in self.words if not (isinstance(word, str) and any(c.isalnum() for c in word))]
        if bad:
            raise OptionError(f"a hotword must have a letter or a digit, got {bad[0]!r}: leave it out")
        if len(self.words) > MOST_WORDS:
            raise OptionError(f"hotwords must be {MOST_WORDS} at most, got {len(self.words)}: keep the likeliest")
        for name in ("threshold", "bias"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionError(f"{name} of hotwords must be 0 or more and finite, got {getattr(self, name)}")
        clean = (" ".join(unicodedata.normalize("NFC", word).split()) for word in self.words)
        object.__setattr__(self, "words", tuple(dict.fromkeys(clean)))


Wanted: TypeAlias = Hotwords | Sequence[str] | None
"""How a caller may give them."""


def checked(wanted: Wanted) -> Hotwords | None:
    """Hotwords of a list of words, with the usual settings; None for none. Raises OptionError."""
    if wanted is None or isinstance(wanted, Hotwords):
        return wanted
    return Hotwords(words=wanted if isinstance(wanted, str) else tuple(wanted))  # type: ignore[arg-type]


def read_list(text: str | None) -> Hotwords | None:
    """Hotwords of a command line: words between commas, or ``@FILE`` with one on each line; None or "" for none.

    Raises OptionError.
    """
    if not text:
        return None
    if not text.startswith("@"):
        return checked([word for word in text.split(",") if word.strip()])
    try:
        lines = FilePath(text[1:]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the hotwords in {text[1:]} can't be read: {error}; give a file in UTF-8") from error
    return checked([line for line in lines if line.strip()])


@dataclass(frozen=True)
class _Find:
    """A hotword in the place of some of the labels of a path."""

    word: str
    begin: int
    """The first label that it replaces."""
    end: int
    """The one behind the last."""
    slots: tuple[int, int]
    """First and last audio token."""
    gain: float
    """Nats that it is within the threshold."""


def put_in(path: Path, logits: NDArray[np.float32], tokenizer: Tokenizer, hotwords: Hotwords, language: str) -> Path:
    """A path of labels with the hotwords that (N, C) CTC ``logits`` speak for in it, favoured by the denoiser.

    language: of the window; where it is written with spaces, whole words are replaced only.
    """
    is_spaced = language != "zh"
    found = _finds(path, losses(logits), tokenizer, hotwords, is_spaced=is_spaced)
    tokens, slots = list(path.tokens), list(path.slots)
    for find in sorted(found, key=lambda f: f.begin, reverse=True):
        goes_on = is_spaced and (find.begin == 0 or _has_space(path.tokens[find.begin], tokenizer))
        labels = tokenizer.pieces(find.word, goes_on=goes_on)
        first, last = find.slots
        spans = align(logits[first : last + 1], labels, blank=tokenizer.blank)
        if spans is not None and not _is_written(tokenizer, path.tokens[find.begin : find.end], find.word):
            tokens[find.begin : find.end] = labels
            slots[find.begin : find.end] = [first + span.peak for span in spans]
    favoured = tuple(dict.fromkeys(tokenizer.spell(tokenizer.encode(find.word)) for find in found))
    return replace(path, tokens=tokens, slots=slots, favoured=favoured, favour=hotwords.bias)


def _is_written(tokenizer: Tokenizer, labels: Sequence[int], word: str) -> bool:
    """Whether labels spell the word already, but for a capital that begins a sentence."""
    heard = tokenizer.decode(tokenizer.alphabet[label] for label in labels)
    return heard in (word, word[:1].upper() + word[1:])


def _finds(
    path: Path, lost: NDArray[np.float32], tokenizer: Tokenizer, hotwords: Hotwords, *, is_spaced: bool
) -> list[_Find]:
    """The hotwords that were heard, none in another's place."""
    ways = [(word, labels) for word in hotwords.words for labels in _spellings(tokenizer, word, is_spaced=is_spaced)]
    begins = _word_begins(path, tokenizer, is_spaced=is_spaced)
    finds: list[_Find] = []
    for s in spot(lost, [labels for _, labels in ways], blank=tokenizer.blank, most=hotwords.threshold):
        word, labels = ways[s.word]
        inside = [n for n, slot in enumerate(path.slots) if s.first <= slot <= s.last]
        if not inside:
            continue
        begin = max(b for b in begins if b <= inside[0])
        end = min((b for b in begins if b > inside[-1]), default=len(path.tokens))
        start = min(s.first, path.slots[begin])
        stop = max(s.last, path.slots[end] - 1 if end < len(path.slots) else len(lost) - 1)
        rest = float(lost[start : s.first, tokenizer.blank].sum() + lost[s.last + 1 : stop + 1, tokenizer.blank].sum())
        gain = hotwords.threshold * len(labels) - s.loss + rest
        if gain >= 0:
            finds.append(_Find(word, begin, end, (start, stop), gain))
    chosen: list[_Find] = []
    for find in sorted(finds, key=lambda f: -f.gain):
        if all(find.end <= other.begin or find.begin >= other.end for other in chosen):
            chosen.append(find)
    return chosen


def _spellings(tokenizer: Tokenizer, word: str, *, is_spaced: bool) -> list[list[int]]:
    """The labels that may say a word: as given, in lower case, with a capital; at the start of a text, too."""
    forms = dict.fromkeys((word, word.lower(), word[:1].upper() + word[1:]))
    ways = [tokenizer.pieces(form, goes_on=goes_on) for form in forms for goes_on in {is_spaced, False}]
    return [list(labels) for labels in dict.fromkeys(map(tuple, ways)) if labels]


def _word_begins(path: Path, tokenizer: Tokenizer, *, is_spaced: bool) -> list[int]:
    """The labels that words begin with, and the marks around words; without spaces, all."""
    if not is_spaced:
        return list(range(len(path.tokens)))
    opens = [n == 0 or _has_space(label, tokenizer) for n, label in enumerate(path.tokens)] + [True]
    texts = [tokenizer.decode([tokenizer.alphabet[label]]) for label in path.tokens]
    is_mark = [bool(text) and not any(c.isalnum() for c in text) for text in texts] + [True]
    closing = [mark and (opens[n + 1] or is_mark[n + 1]) for n, mark in enumerate(is_mark[:-1])]
    behind_opening = [False] + [mark and begins for mark, begins in zip(is_mark, opens, strict=True)]
    return [n for n in range(len(texts)) if opens[n] or closing[n] or behind_opening[n]]


def _has_space(label: int, tokenizer: Tokenizer) -> bool:
    return (tokenizer.backend.id_to_token(tokenizer.alphabet[label]) or "").startswith(tuple(SPACES))


class Favouring:
    """A reader whose rows raise their favoured words, where the text holds them."""

    def __init__(self, reader: Reader, paths: Sequence[Path], tokenizer: Tokenizer) -> None:
        self._reader, self._paths, self._tokenizer = reader, paths, tokenizer

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[list[Place]]:
        """See ``places.Reader``."""
        told = self._reader.read(texts)
        return [self._raised(row, text, enumerate(places)) for (row, text), places in zip(texts, told, strict=True)]

    def raised(self, row: int, text: Sequence[int], number: int, place: Place) -> Place:
        """What is said of a place where the token that a row's text has at ``number`` may stand again."""
        (found,) = self._raised(row, text, [(number, place)])
        return found

    def _raised(self, row: int, text: Sequence[int], numbered: Iterable[tuple[int, Place]]) -> list[Place]:
        path = self._paths[row]
        held = favoured(text, path, self._tokenizer)
        return [p.raised(text[n], path.favour) if n in held else p for n, p in numbered]

    @property
    def looks_ahead(self) -> bool:
        """See ``places.Reader``."""
        return self._reader.looks_ahead

    def ahead(self, row: int, place: int, tokens: Sequence[int]) -> Place:
        """See ``places.Reader``."""
        return self._reader.ahead(row, place, tokens)


def favoured(tokens: Sequence[int], path: Path, tokenizer: Tokenizer) -> set[int]:
    """The places of ``tokens`` that hold a word that ``path`` favours."""
    return _places(tokens, path.favoured, tokenizer) if path.favoured else set()


def _places(tokens: Sequence[int], words: Sequence[str], tokenizer: Tokenizer) -> set[int]:
    """The places of ``tokens`` that hold one of ``words``, each spelled as the vocabulary does."""
    size = tokens.index(tokenizer.end) if tokenizer.end in tokens else len(tokens)
    owner = [place for place in range(size) for _ in tokenizer.spell([tokens[place]])]
    text = tokenizer.spell(tokens[:size])
    found: set[int] = set()
    for word in words:
        at = text.find(word)
        while at >= 0:
            mine = owner[at : at + len(word)]
            if owner[at - 1 : at] != mine[:1] and owner[at + len(word) : at + len(word) + 1] != mine[-1:]:
                found.update(mine)
            at = text.find(word, at + 1)
    return found
