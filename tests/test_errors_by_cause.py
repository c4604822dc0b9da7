"""Errors by cause: each cause has an error that it is found in, counts add up, and the same clips come every time."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from diffasr.evaluate.normalise import normalise
from diffasr.text import LANGUAGES

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "errors_by_cause.py"
BY = runpy.run_path(str(SCRIPT))


def row(reference: str, hypothesis: str, language: str = "en", number: int = 0) -> dict[str, Any]:
    return {
        "system": "seeded-8", "seed": None, "set": "dev", "id": f"{language}{number}", "language": language,
        "reference": reference, "hypothesis": hypothesis, "duration": 1.0, "seconds": {},
        "decoder": "seeded", "steps": 8,
    }  # fmt: skip


def causes(reference: str, hypothesis: str, language: str = "en") -> list[str]:
    clip = BY["judge"](row(reference, hypothesis, language), BY["number_words"](language))
    return [cause for cause in clip.causes if cause]


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "expected"),
    [
        ("en", "he went home today", "he went मैं today", ["script"]),
        ("hi", "यह किताब मेरी है", "यह kitab मेरी है", ["script"]),
        ("zh", "我们明天去", "我们ab天去", ["script", "script"]),
        ("en", "he has seven dogs here", "he has 7 dogs here", ["number"]),
        ("de", "er hat sieben Hunde dort", "er hat lieben Hunde dort", ["number"]),
        ("de", "wir wollen zusammen arbeiten heute", "wir wollen zusammenarbeiten heute", ["split", "split"]),
        ("en", "yes he met Hermione there", "yes he met Harmony there", ["name"]),
        ("de", "Gestern lief der Hund davon", "Gestern lief der Mund davon", ["inflection"]),
        ("en", "the cat sat down here", "cat sat down here", ["edge"]),
        ("en", "cat sat down here", "cat sat down here now", ["edge"]),
        ("fr", "il voit la maison rouge", "il voit le maison rouge", ["function"]),
        ("es", "ahora los niños comen", "ahora los niñas comen", ["inflection"]),
        ("de", "wir sprachen gestern darüber", "wir sprechend gestern darüber", ["sounds alike"]),
        ("en", "they walking fast now", "they walked fast now", ["inflection"]),
        ("en", "she caught fish again", "she court fish again", ["sounds alike"]),
        ("en", "they bought bread again", "they elephants bread again", ["other"]),
        ("zh", "我们明天走", "我们后天走", ["other"]),
        ("en", "“Hello,” said the Man-Eater!", "hello said the man eater", []),
    ],
)
def test_each_cause_is_found(language: str, reference: str, hypothesis: str, expected: list[str]) -> None:
    assert causes(reference, hypothesis, language) == expected


def test_a_capital_is_a_name_only_within_a_sentence() -> None:
    names = {w.text for w in BY["words"]("Then I saw. Anna and he (Bert) said: What?", "en") if w.is_name}
    assert names == {"bert"}
    assert not any(w.is_name for w in BY["words"]("Dann sah ich Anna", "de"))
    said = [w.text for w in BY["words"]("Jean-Luc l'a vu", "fr")]
    assert said == normalise("Jean-Luc l'a vu", "fr").split()


def test_what_differs_has_a_cause_and_nothing_else() -> None:
    clip = BY["judge"](row("the cat sat on the mat", "a cat on the big mat"), set())
    for (a, b), cause in zip(clip.pairs, clip.causes, strict=True):
        assert bool(cause) == (a != b)
        assert cause in ("", *BY["CAUSES"])
    lines = BY["show"](clip).split("\n")
    assert lines[0] == "en en0: 3 of 7 wrong"
    assert lines[1].split()[:3] == ["said", "the", "cat"] and lines[2].split()[:3] == ["wrote", "a", "cat"]
    assert lines[1].index("mat") == lines[2].index("mat"), "words stand under each other"


def test_columns_are_as_wide_as_they_look() -> None:
    clip = BY["judge"](row("我们走", "我门走", "zh"), set())
    first, second = BY["show"](clip).split("\n")[1:3]
    assert BY["wcswidth"](first[: first.index("走")]) == BY["wcswidth"](second[: second.index("走")])


def test_clips_are_spread_evenly_and_the_same_every_time() -> None:
    rows = [row("a", "a", code, n) for code in LANGUAGES for n in range(20 if code != "hi" else 3)]
    chosen = BY["spread"](rows, 50)
    assert chosen == BY["spread"](list(rows), 50)
    counts = [sum(r["language"] == code for r in chosen) for code in LANGUAGES]
    assert sorted(counts) == [3, 8, 8, 8, 9, 9]
    assert len({r["id"] for r in chosen}) == len(chosen)
    german = [int(r["id"][2:]) for r in chosen if r["language"] == "de"]
    assert german == sorted(german) and german[-1] >= 15, "all over the set"


def test_the_table_adds_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main = BY["main"].__globals__
    rows = [row("he sees the cat now", "he sees a cat", "en"), row("il voit la porte", "il voit la porte", "fr")]
    monkeypatch.setitem(main, "read_rows", lambda place: rows)
    monkeypatch.setattr(sys, "argv", ["x", "runs", "--system", "seeded-8", "--count", "4"])
    BY["main"]()
    said = capsys.readouterr().out
    assert "en0: 2 of 5 wrong" in said and "fr0" not in said, "clips without an error are not shown"
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in said.splitlines()
             if line.startswith("|")}  # fmt: skip
    assert cells["cause"] == ["en", "fr", "all", "%"]
    assert cells["function"] == ["1", "0", "1", "50"] and cells["edge"] == ["1", "0", "1", "50"]
    assert cells["errors"] == ["2", "0", "2", "100"]
    assert cells["words (zh: characters) said"] == ["5", "4", "9", ""] and cells["clips"] == ["1", "1", "2", ""]
    monkeypatch.setattr(sys, "argv", ["x", "runs", "--system", "ctc"])
    with pytest.raises(SystemExit):
        BY["main"]()
    assert "it has seeded-8" in capsys.readouterr().err
