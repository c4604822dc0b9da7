"""Raw rows in; error by length of recording, error of the drafts, and confidence against correctness, out.

What a row does not tell (``drafts``, ``words``) is left out, and with it the systems that never tell it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffasr.evaluate.alignment import align, units
from diffasr.evaluate.folder import Row
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts
from diffasr.evaluate.tally import ALL, Tallies, measure
from diffasr.text import LANGUAGES

EDGES = (0, 3, 6, 10, 20)
"""Where the bins of length begin, in seconds; the last has no end."""
BINS = 10
"""Of confidence, equally wide."""


def by_duration(tallies: Tallies) -> list[dict[str, Any]]:
    """CER of each set and system in each bin of length that holds recordings, all languages pooled.

    A recording belongs to the bin that begins at or before its length. Bins may differ in their share of languages:
    ``languages`` counts them.
    """
    out = []
    for (data, name), clips in tallies.items():
        for start, end in zip(EDGES, (*EDGES[1:], None), strict=True):
            mine = [t for t in clips.values() if start <= t.duration and (end is None or t.duration < end)]
            found = measure([t.characters for t in mine], mine)
            if found:
                spoken = Counter(t.language for t in mine)
                languages = {code: spoken[code] for code in LANGUAGES if code in spoken}
                out.append(
                    {"set": data, "system": name, "from": start, "to": end, "recordings": len(mine),
                     "languages": languages, "cer": found}
                )  # fmt: skip
    return out


def draft_errors(rows: Iterable[Row], normaliser: str) -> list[dict[str, Any]]:
    """CER of the text after each step of a decode, and of what was written in the end on the same recordings.

    Rates are means over languages, each of equal weight. A text that settles early stands until the last step, so that
    every step is about the same recordings; ``running`` counts those that were still at work. Of a recording that was
    begun again on a larger canvas the last steps count. Recordings of several windows tell no drafts.
    """
    chosen: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("drafts"):
            chosen.setdefault((row["set"], row["system"]), []).append(row)
    return [
        {"set": data, "system": name, "texts": len(mine)} | _curve(mine, normaliser)
        for (data, name), mine in chosen.items()
    ]


def _curve(rows: Sequence[Row], normaliser: str) -> dict[str, Any]:
    drafts = [row["drafts"][-row["steps"] :] for row in rows]
    steps = max(map(len, drafts))
    counts: dict[str, list[Counts]] = {}
    for row, texts in zip(rows, drafts, strict=True):
        stood = [*texts, *texts[-1:] * (steps - len(texts)), row["hypothesis"]]
        reference = normalise(row["reference"], row["language"], normaliser)
        known = {text: character_counts(reference, normalise(text, row["language"], normaliser)) for text in set(stood)}
        before = counts.get(row["language"], [Counts()] * len(stood))
        counts[row["language"]] = [a + known[text] for a, text in zip(before, stood, strict=True)]
    counted = [sums for sums in counts.values() if sums[0].size]
    *rates, final = [
        sum(sums[place].rate for sums in counted) / len(counted) if counted else None for place in range(steps + 1)
    ]
    running = [sum(len(texts) > place for texts in drafts) for place in range(steps)]
    return {"cer": rates, "final": final, "running": running}


def confidence(rows: Iterable[Row], normaliser: str) -> list[dict[str, Any]]:
    """How often words are right against how sure their system was of them, a language at a time and pooled.

    A word is right if all that the normaliser leaves of it is aligned to its like in the reference (``right_words``).
    ``ece`` is the expected calibration error: arXiv:1706.04599, equation 3, with equally wide bins.
    """
    heard: dict[tuple[str, str], dict[str, list[tuple[float, bool]]]] = {}
    for row in rows:
        if row.get("words"):
            mine = heard.setdefault((row["set"], row["system"]), {})
            mine.setdefault(row["language"], []).extend(right_words(row, normaliser))
    out = []
    for (data, name), mine in heard.items():
        codes = [code for code in LANGUAGES if mine.get(code)]
        for code in [*codes, *([ALL] if len(codes) > 1 else [])]:
            words = [pair for c in codes if code in (ALL, c) for pair in mine[c]]
            out.append({"set": data, "system": name, "language": code} | reliability(words))
    return out


def right_words(row: Row, normaliser: str) -> list[tuple[float, bool]]:
    """Of each word of a row its probability and whether it is right; words of which nothing is left are left out."""
    found = are_right([word for word, _ in row["words"]], row["reference"], row["language"], normaliser)
    return [(p, is_right) for (_, p), is_right in zip(row["words"], found, strict=True) if is_right is not None]


def are_right(words: Sequence[str], reference: str, language: str, normaliser: str) -> list[bool | None]:
    """Whether each of ``words`` is aligned to its like in ``reference``; None where nothing is left of the word.

    Words are normalised one by one: where rules look at several (Whisper's on English numbers), some count as wrong.
    """
    pieces = [units(normalise(word, language, normaliser), language) for word in words]
    owners = [number for number, mine in enumerate(pieces) for _ in mine]
    expected = units(normalise(reference, language, normaliser), language)
    spoken = [(a, b) for a, b in align(expected, [piece for mine in pieces for piece in mine]) if b is not None]
    wrong = {owner for owner, (a, b) in zip(owners, spoken, strict=True) if a != b}
    return [number not in wrong if mine else None for number, mine in enumerate(pieces)]


def reliability(words: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Mean confidence and share of right words in each bin of (probability, is right), and the gap between the two."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for probability, is_right in words:
        bins[min(int(probability * BINS), BINS - 1)].append((probability, is_right))
    filled: list[Mapping[str, Any]] = [{"words": len(b)} | _means(b) for b in bins]
    gaps = [b["words"] * abs(b["accuracy"] - b["confidence"]) for b in filled if b["words"]]
    return {"words": len(words)} | _means(words) | {"ece": sum(gaps) / len(words), "bins": filled}


def _means(words: Sequence[tuple[float, bool]]) -> dict[str, float | None]:
    if not words:
        return {"confidence": None, "accuracy": None}
    return {
        "confidence": sum(probability for probability, _ in words) / len(words),
        "accuracy": sum(is_right for _, is_right in words) / len(words),
    }
