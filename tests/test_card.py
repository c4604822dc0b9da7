"""The model card's tables are those of the report and of the manifests, and the script says so when they are not."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from test_report import row

from diffasr.evaluate.report import build_report

ROOT = Path(__file__).parents[1]
CARD = runpy.run_path(str(ROOT / "recipes" / "mini" / "card.py"))
SCORES, HOURS = "<!-- scores -->\nold\n<!-- end of scores -->\n", "<!-- hours -->\n<!-- end of hours -->\n"
MARKS = f"before\n\n{SCORES}\nbetween\n\n{HOURS}after\n"
IDENTITY = {"model": {"name": "mini", "fingerprint": "be2f" * 16}, "sets": [], "find_language": False}
SAID = ["Alpha beta.", "gamma delta", "one two three", "four"]
HEARD = ["alpha beta", "gamma Delta", "one two three", "for"]


def rows() -> list[dict[str, Any]]:
    return [row(n, "seeded-8", HEARD[n], reference=said, language="en") for n, said in enumerate(SAID)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation with its report, two manifests, and a card without tables."""
    run, place = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    place.mkdir()
    (run / "hypotheses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows()), encoding="utf-8")
    facts = {"identity": IDENTITY, "systems": {}, "sessions": []}
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (place / "results.json").write_text(json.dumps(build_report(rows(), "basic", facts)), encoding="utf-8")
    for name, source, license, seconds in (
        ("a", "kerstin_de", "CC0", [1800, 900]),
        ("b", "synthetic_pico", "Apache-2.0", [36]),
    ):
        lines = [{"lang": "de", "source": source, "license": license, "duration": s, "text": "x"} for s in seconds]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "CARD.md").write_text(MARKS, encoding="utf-8")
    return tmp_path


def call(folder: Path, command: str, *words: str) -> int:
    more = ["--card", str(folder / "CARD.md")] if command == "write" else [
        "--rows", str(folder / "run"), "--manifest", str(folder / "a.jsonl"), str(folder / "b.jsonl"),
    ]  # fmt: skip
    return int(CARD["main"]([command, "--results", str(folder / "results"), *more, *words]))


def test_tables_stand_between_the_marks_and_nowhere_else(folder: Path) -> None:
    assert call(folder, "gather") == 0
    assert call(folder, "write", "--check") == 1
    assert (folder / "CARD.md").read_text(encoding="utf-8") == MARKS, "a check changes nothing"
    assert call(folder, "write") == call(folder, "write", "--check") == 0
    text = (folder / "CARD.md").read_text(encoding="utf-8")
    assert text.startswith("before\n\n<!-- scores -->\n") and text.endswith("<!-- end of hours -->\nafter\n")
    assert "old" not in text and "between" in text
    changed = text.replace("0.75", "0.85")
    assert changed != text
    (folder / "CARD.md").write_text(changed, encoding="utf-8")
    assert call(folder, "write", "--check") == 1


def test_scores_are_given_without_case_and_with_it(folder: Path) -> None:
    call(folder, "gather")
    call(folder, "write")
    text = (folder / "CARD.md").read_text(encoding="utf-8")
    plain, cased = text.split("With case and punctuation (normaliser cased):")
    size = [sum(map(len, texts)) for texts in (["alpha beta", *SAID[1:]], SAID)]
    assert f"| diffusion from the CTC text, 8 steps | {100 * 1 / size[0]:.1f} [" in plain, "four, for"
    assert f"| diffusion from the CTC text, 8 steps | {100 * 4 / size[1]:.1f} [" in cased, "and A, the full stop, D"
    assert "Model mini, SHA-256 be2fbe2fbe2fbe2f; the language is given." in plain


def test_hours_are_by_language_kind_source_and_licence(folder: Path) -> None:
    call(folder, "gather")
    call(folder, "write")
    text = (folder / "CARD.md").read_text(encoding="utf-8")
    assert "| de | 0.75 | 0.01 | kerstin_de 0.75 (CC0); pico 0.01 (Apache-2.0) |" in text
    assert "| hi | – | – |  |" in text
    assert "| all | 0.75 | 0.01 | |" in text


def test_the_language_is_told_where_it_was_found(folder: Path) -> None:
    place = folder / "results" / "results.json"
    found = [r | {"found": "en" if n else "de"} for n, r in enumerate(rows())]
    facts = {"identity": IDENTITY | {"find_language": True}, "systems": {}, "sessions": []}
    place.write_text(json.dumps(build_report(found, "basic", facts)), encoding="utf-8")
    (folder / "CARD.md").write_text(MARKS.partition("between")[0], encoding="utf-8")
    assert call(folder, "write") == 0
    text = (folder / "CARD.md").read_text(encoding="utf-8")
    assert "Language named rightly by seeded-8 on dev: 3 of 4 (75.0 %)." in text
    assert "the language is found by the system" in text
    assert "With case" not in text, "nothing was gathered"


def test_what_is_missing_or_does_not_fit_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "write") == 2
    assert "card.json: run card.py gather first" in capsys.readouterr().err
    call(folder, "gather")
    (folder / "CARD.md").write_text("nothing", encoding="utf-8")
    assert call(folder, "write") == 2
    assert "has no <!-- scores -->" in capsys.readouterr().err
    place = folder / "results" / "card.json"
    place.write_text(place.read_text(encoding="utf-8").replace("be2f", "aaaa"), encoding="utf-8")
    assert call(folder, "write") == 2
    assert "of another run than" in capsys.readouterr().err
    (folder / "results" / "results.json").unlink()
    assert call(folder, "write") == 2
    assert "diffasr evaluate" in capsys.readouterr().err


def test_the_card_of_the_mini_agrees_with_its_report() -> None:
    text = (ROOT / "src" / "diffasr" / "assets" / "mini" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<!-- scores -->" in text
    assert CARD["main"](["write", "--check"]) == 0
