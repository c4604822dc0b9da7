"""Rows of an evaluation in; some clips word by word, and a first guess at what each wrong word is due to, out.

    python benchmarks/errors_by_cause.py runs/evaluation --system seeded-8 [--count 50] [--languages de fr]

DIR is what `diffasr evaluate … --out DIR` wrote. The clips are spread over the languages and over each of them, the
same on every call. Words are compared by the normaliser basic, Mandarin by characters. The first guess that fits:

    script        letters of another script than the language's own
    number        a digit, or a word for a number, on either side
    split         the same letters with the spaces elsewhere
    name          written with a capital within a sentence (not in German, where nouns are)
    edge          left out or put in at the very beginning or end
    function      one of the small words of the language is wrong, missing or too many
    inflection    one letter differs, or only an ending of up to three
    sounds alike  at most half of the letters differ
    other         none of these

A guess is a guess: read the clips. Needs `pip install 'diffasr[evaluate]'`.
"""

import argparse
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from wcwidth import wcswidth

from diffasr.evaluate.alignment import align, units
from diffasr.evaluate.folder import Row, read_rows
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.tally import SPACELESS
from diffasr.text import LANGUAGES

CAUSES = ("script", "number", "split", "name", "edge", "function", "inflection", "sounds alike", "other")
SCRIPTS = {"hi": "DEVANAGARI", "zh": "CJK"}
"""How the Unicode names of a language's letters begin; of all others LATIN."""
FUNCTION = {
    "en": "a an the of to in on at for from with by as and or but is are was were be been it its he she they we you i "
          "his her their this that these those there not",
    "de": "der die das den dem des ein eine einen einem einer und oder aber in im an am auf zu zum zur von vom mit für "
          "bei aus ist sind war es er sie wir ihr ich sich nicht als auch",
    "fr": "le la les l un une des de du d à au aux en dans sur pour par avec et ou mais est sont a ont il elle ils "
          "elles on nous vous je se s ne n pas que qu qui ce c son sa ses y",
    "es": "el la los las un una unos unas de del a al en con por para y e o u pero es son fue ha se su sus lo le que "
          "no yo él ella",
    "hi": "का के की को में से पर ने है हैं था थी थे और या यह वह ये वे कि एक भी ही तो नहीं",
    "zh": "的 了 在 是 和 有 也 就 不 一 他 她 我 你 们",
}  # fmt: skip
MANY = [*range(21), *range(30, 101, 10), 1000]
Pair = tuple[str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Word:
    """What the normaliser leaves of a word, or a part of it, and whether it looks like a name."""

    text: str
    is_name: bool


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording, aligned: pairs of reference and hypothesis, and a cause for each pair that differs."""

    row: Row
    pairs: list[Pair]
    causes: list[str]
    """Empty for what is right."""


def words(text: str, language: str) -> list[Word]:
    """The words that are compared. A name: a capital within a sentence, in a language where only names have them."""
    out: list[Word] = []
    begins = True
    for raw in text.split():
        letters = raw.lstrip("\"'«“„¿¡(-–—’")
        is_name = language != "de" and not begins and letters[:1].isupper() and letters not in ("I", "I'm", "I'll")
        out += [Word(text=t, is_name=is_name) for t in units(normalise(raw, language), language)]
        begins = raw.rstrip("\"'»”)’")[-1:] in (".", "?", "!", ":")
    return out


def number_words(language: str) -> set[str]:
    """Words for numbers, as far as num2words knows the language; its small words are not among them."""
    import num2words  # type: ignore[import-untyped, unused-ignore]

    if language not in num2words.CONVERTER_CLASSES:
        return set()
    said = " ".join(str(num2words.num2words(number, lang=language)) for number in MANY)
    return set(re.split(r"[\s\-]+", normalise(said, language))) - set(FUNCTION[language].split())


def edits(first: str, second: str) -> int:
    """Fewest edits of letters."""
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(first, second))


def has_other_script(text: str, language: str) -> bool:
    """Whether a letter is not of the script that the language is written in."""
    own = SCRIPTS.get(language, "LATIN")
    return any(c.isalpha() and not unicodedata.name(c, own).startswith(own) for c in text)


def is_inflection(first: str, second: str) -> bool:
    """One letter of several differs, or two words of at least four letters in common have other endings."""
    if max(len(first), len(second)) > 2 and edits(first, second) <= 1:
        return True
    same = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return same >= 4 and max(len(first), len(second)) - same <= 3


def cause(pair: Pair, language: str, *, is_name: bool, is_edge: bool, numbers: set[str]) -> str:
    """The first guess that fits one differing pair; ``split`` is found over several: see ``judge``."""
    said, heard = pair[0] or "", pair[1] or ""
    both = [text for text in (said, heard) if text]
    is_spelled = len(both) == 2 and language not in SPACELESS
    guesses = {
        "script": has_other_script(heard, language) and not has_other_script(said, language),
        "number": any(text in numbers or any(c.isdigit() for c in text) for text in both),
        "name": is_name,
        "edge": len(both) == 1 and is_edge,
        "function": any(text in FUNCTION[language].split() for text in both),
        "inflection": is_spelled and is_inflection(said, heard),
        "sounds alike": is_spelled and edits(said, heard) <= max(len(said), len(heard)) / 2,
    }
    return next((name for name, fits in guesses.items() if fits), "other")


def judge(row: Row, numbers: set[str]) -> Clip:
    """Align one row and guess the cause of each error."""
    language = row["language"]
    said, heard = words(row["reference"], language), words(row["hypothesis"], language)
    pairs = align([w.text for w in said], [w.text for w in heard])
    names = iter([w.is_name for w in said])
    are_names = [a is not None and next(names) for a, _ in pairs]
    causes = [""] * len(pairs)
    for is_wrong, group in groupby(range(len(pairs)), key=lambda n: pairs[n][0] != pairs[n][1]):
        run = list(group)
        if not is_wrong:
            continue
        letters = ["".join(pairs[n][side] or "" for n in run) for side in (0, 1)]
        is_edge = run[0] == 0 or run[-1] == len(pairs) - 1
        for n in run:
            causes[n] = "split" if letters[0] == letters[1] else cause(
                pairs[n], language, is_name=are_names[n], is_edge=is_edge, numbers=numbers
            )  # fmt: skip
    return Clip(row=row, pairs=pairs, causes=causes)


def show(clip: Clip) -> str:
    """Three lines under each other: what was said, what was written, and the guess where they differ."""
    cells = [(a or "*", b or "*", c) for (a, b), c in zip(clip.pairs, clip.causes, strict=True)]
    lines = []
    for name, part in (("said", 0), ("wrote", 1), ("", 2)):
        padded = [cell[part] + " " * (max(wcswidth(t) for t in cell) - wcswidth(cell[part])) for cell in cells]
        lines.append(f"  {name:6}{' '.join(padded)}".rstrip())
    wrong = sum(map(bool, clip.causes))
    return "\n".join([f"{clip.row['language']} {clip.row['id']}: {wrong} of {len(cells)} wrong", *lines])


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows, as many of each language as the others, spread over each; all where there are fewer."""
    groups = [[row for row in rows if row["language"] == code] for code in LANGUAGES]
    groups = [group for group in groups if group]
    chosen = []
    for number, group in enumerate(groups):
        share = min(len(group), count // len(groups) + (number < count % len(groups)))
        chosen += [group[place * len(group) // share] for place in range(share)]
    return chosen


def table(clips: Sequence[Clip]) -> str:
    """Errors by cause, a column a language and all."""
    codes = [code for code in LANGUAGES if any(c.row["language"] == code for c in clips)]
    columns = [[c for c in clips if code in ("all", c.row["language"])] for code in (*codes, "all")]
    counts = [Counter(cause for clip in mine for cause in clip.causes if cause) for mine in columns]
    lines = [f"| cause | {' | '.join(codes)} | all | % |", "|---" * (len(codes) + 3) + "|"]
    whole = counts[-1].total()
    for name in CAUSES:
        share = 100 * counts[-1][name] / max(1, whole)
        lines.append(f"| {name} | {' | '.join(str(c[name]) for c in counts)} | {share:.0f} |")
    lines.append(f"| errors | {' | '.join(str(c.total()) for c in counts)} | 100 |")
    sizes = [sum(a is not None for clip in mine for a, _ in clip.pairs) for mine in columns]
    lines.append(f"| words (zh: characters) said | {' | '.join(map(str, sizes))} | |")
    lines.append(f"| clips | {' | '.join(str(len(mine)) for mine in columns)} | |")
    return "\n".join(lines)


def main() -> None:
    """Read the rows, show the clips that have errors, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, metavar="DIR")
    parser.add_argument("--system", required=True, help="as the report names it, e.g. seeded-8, ctc, ar")
    parser.add_argument("--count", type=int, default=50, help="clips (default: %(default)s)")
    parser.add_argument("--languages", nargs="+", choices=list(LANGUAGES), default=list(LANGUAGES))
    args = parser.parse_args()
    rows = read_rows(args.rows)
    mine = [row for row in rows if row["system"] == args.system and row["language"] in args.languages]
    if not mine:
        parser.error(f"no rows of {args.system!r} there; it has {', '.join(sorted({row['system'] for row in rows}))}")
    numbers = {code: number_words(code) for code in args.languages}
    clips = [judge(row, numbers[row["language"]]) for row in spread(mine, args.count)]
    for clip in clips:
        if any(clip.causes):
            print(show(clip), end="\n\n")
    print(table(clips))


if __name__ == "__main__":
    main()
