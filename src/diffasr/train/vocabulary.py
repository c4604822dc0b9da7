"""A Whisper tokenizer and a pile of text in; a smaller tokenizer for that text out, and where its rows come from.

Two changes to the byte-level BPE of Whisper:

* **Cut.** Only tokens that the text uses stay, with the merges that build them. Merges keep their order, so text
  that stays inside the kept merges is split exactly as before, and a removed token falls back to its parts.
* **Grown, for Hindi.** Whisper's word pattern ends a word at every vowel sign (a combining mark is no letter to it),
  so Hindi costs about 20 tokens a second of speech: more than CTC has slots. Letters and marks are kept together and
  merges learned on Hindi text are appended. They come last, so no other language is split differently.

A new token starts from the mean of the embeddings of the Whisper tokens that it stands for.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor

from diffasr.errors import RecipeError
from diffasr.text import LANGUAGES, PREFIX_TOKENS
from diffasr.text import Tokenizer as TextTokenizer

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's, with marks


def words_together(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tokenizer.json whose words keep their combining marks, and which adds no tokens of its own."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = splitter
    out: dict[str, Any] = json.loads(tokenizer.to_str())
    out["post_processor"] = None
    return whole(out)


def whole(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy of a tokenizer.json in which every token of several bytes has a merge that makes it.

    A file that was read as if its first line were a header lacks its first merge, and then every word that begins with
    it is spelled otherwise than the model was taught: Whisper's first is a space and t. Such a token is made of two
    that are there before it, in its place by number.
    """
    out: dict[str, Any] = json.loads(json.dumps(spec))
    vocab: dict[str, int] = out["model"]["vocab"]
    special = {token["content"] for token in out["added_tokens"]}
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in out["model"]["merges"]]
    made = {left + right for left, right in merges}
    for token in sorted(vocab.keys() - made - special, key=vocab.__getitem__):
        pairs = [(token[:n], token[n:]) for n in range(1, len(token))]
        known = [p for p in pairs if all(vocab.get(part, vocab[token]) < vocab[token] for part in p)]
        if known:
            before = sum(vocab[left + right] < vocab[token] for left, right in merges)
            merges.insert(before, known[0])
    out["model"]["merges"] = [list(m) for m in merges]
    return out


def learn_merges(spec: dict[str, Any], lines: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The ``count`` merges that byte-pair encoding would add next on ``lines``, on top of those in ``spec``."""
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    words: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(line):
            words[(piece,)] += 1
    split = {w: tuple(t.value for t in tokenizer.model.tokenize(w[0])) for w in words}
    table = [(list(split[w]), n) for w, n in words.items()]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for row, (parts, n) in enumerate(table):
        for pair in pairwise(parts):
            pairs[pair] += n
            where.setdefault(pair, set()).add(row)
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for row in where.pop(best):
            parts, n = table[row]
            pairs.subtract(Counter({p: n * k for p, k in Counter(pairwise(parts)).items()}))
            merged = _merge(parts, best)
            table[row] = (merged, n)
            for pair in pairwise(merged):
                pairs[pair] += n
                where.setdefault(pair, set()).add(row)
        del pairs[best]
    return merges


def _merge(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


def grow(spec: dict[str, Any], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A copy of ``spec`` with ``merges`` appended; new tokens get ids past the old ones."""
    out: dict[str, Any] = json.loads(json.dumps(spec))
    vocab = out["model"]["vocab"]
    next_id = 1 + max([*vocab.values(), *(t["id"] for t in out["added_tokens"])])
    for left, right in merges:
        if left + right not in vocab:
            vocab[left + right] = next_id
            next_id += 1
        out["model"]["merges"].append([left, right])
    return out


def cut(spec: dict[str, Any], lines: Iterable[str], *, min_count: int = 1) -> dict[str, Any]:
    """A copy of ``spec`` with only what ``lines`` use ``min_count`` times: ids renumbered, specials at the end."""
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    used: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(lines), add_special_tokens=False):
        used.update(encoding.ids)
    vocab: dict[str, int] = spec["model"]["vocab"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in spec["model"]["merges"]]
    parents: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        parents.setdefault(left + right, (left, right))
    wanted = [t for t, i in vocab.items() if used[i] >= min_count or t not in parents]  # bytes always stay
    keep: set[str] = set()
    while wanted:
        token = wanted.pop()
        if token not in keep:
            keep.add(token)
            wanted.extend(parents.get(token, ()))
    specials = [*PREFIX_TOKENS, *(f"<|{code}|>" for code in LANGUAGES)]
    ordered = sorted(keep.difference(specials), key=vocab.__getitem__)
    out: dict[str, Any] = json.loads(json.dumps(spec))
    out["model"]["vocab"] = {t: i for i, t in enumerate(ordered)}
    out["model"]["merges"] = [list(m) for m in merges if m[0] in keep and m[1] in keep and m[0] + m[1] in keep]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    out["added_tokens"] = [{"id": len(ordered) + i, "content": s, **flags} for i, s in enumerate(specials)]
    return out


def sources(old: dict[str, Any], new: dict[str, Any]) -> list[list[int]]:
    """For each id of ``new``, the ids of ``old`` that spell the same: one, or several to take the mean of."""
    tokenizer = Tokenizer.from_str(json.dumps(old))
    known = dict(old["model"]["vocab"]) | {t["content"]: t["id"] for t in old["added_tokens"]}
    rows = dict(new["model"]["vocab"]) | {t["content"]: t["id"] for t in new["added_tokens"]}
    out: list[list[int]] = [[] for _ in rows]
    for token, i in rows.items():
        out[i] = [known[token]] if token in known else [t.id for t in tokenizer.model.tokenize(token)]
    return out


def build(original: Path, lines: Sequence[str], hindi: Sequence[str], *, merges: int, min_count: int) -> dict[str, Any]:
    """Whisper's ``tokenizer.json`` grown by ``merges`` learned on ``hindi``, then cut to ``lines``."""
    spec = words_together(json.loads(original.read_text(encoding="utf-8")))
    return cut(grow(spec, learn_merges(spec, hindi, merges)), lines, min_count=min_count)


def habits(tokenizer: TextTokenizer, texts: Mapping[str, Iterable[str]]) -> Tensor:
    """How usual each CTC label is in each language: log-probabilities (6, C) from counts plus one, the blank's 0."""
    table = torch.ones(len(LANGUAGES), len(tokenizer.alphabet))
    for row, code in enumerate(LANGUAGES):
        for line in texts[code]:
            labels = torch.tensor(tokenizer.pieces(line), dtype=torch.long)
            table[row].index_add_(0, labels, torch.ones(len(labels)))
    table = (table / table.sum(1, keepdim=True)).log()
    table[:, tokenizer.blank] = 0.0
    return table


def resting_rows(tokenizer: TextTokenizer, scripts: Sequence[str]) -> Tensor:
    """(V,) bool: all tokens but those with letters of ``scripts`` alone that are no label of CTC's.

    scripts: as the Unicode names of letters and vowel signs begin. Raises RecipeError where nothing is left to learn.
    """
    labels = set(tokenizer.alphabet)
    rests = [
        token in labels or not _is_written_in(tokenizer.decode([token]), scripts) for token in range(tokenizer.size)
    ]
    if all(rests):
        raise RecipeError(
            f"scripts {', '.join(scripts)}: no token that CTC does not label is written in them; they are named as the "
            "Unicode names of letters begin: DEVANAGARI, LATIN, CJK"
        )
    return torch.tensor(rests)


def _is_written_in(text: str, scripts: Sequence[str]) -> bool:
    letters = [c for c in text if unicodedata.category(c)[0] in "LM"]
    return bool(letters) and all(unicodedata.name(c, "").startswith(tuple(scripts)) for c in letters)
