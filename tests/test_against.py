"""What got worse is found, and how sure that is, with the rows of before and without; too much of it is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import WORDS, row

from diffasr.errors import OptionError
from diffasr.evaluate.against import judge, load_standard
from diffasr.evaluate.report import build_report
from diffasr.evaluate.score import character_counts, paired_bootstrap


def write(folder: Path, rows: list[dict[str, Any]], *, keep_rows: bool = True, normaliser: str = "basic") -> Path:
    folder.mkdir(exist_ok=True)
    if keep_rows:
        (folder / "hypotheses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    path = folder / "results.json"
    path.write_text(json.dumps(build_report(rows, normaliser, {})), encoding="utf-8")
    return path


def held(
    old: list[dict[str, Any]], new: list[dict[str, Any]], folder: Path, *, margin: float = 1.0, keep_rows: bool = True
) -> tuple[str, list[str]]:
    path = write(folder / "old", old, keep_rows=keep_rows)
    standard = load_standard(path, margin, normaliser="basic", rows=folder / "new")
    return judge(standard, build_report(new, "basic", {}), new)


def heard(cut: int, *, numbers: range = range(8), system: str = "seeded-8", **other: Any) -> list[dict[str, Any]]:
    return [row(n, system, WORDS[n % 8][cut:], **other) for n in numbers]


SIZE = sum(len(w) for w in WORDS)


@pytest.mark.parametrize("keep_rows", [True, False])
@pytest.mark.parametrize(("before", "now", "word"), [(0, 2, "worse"), (2, 0, "better"), (1, 1, "the same")])
def test_it_says_better_worse_or_the_same(tmp_path: Path, before: int, now: int, word: str, keep_rows: bool) -> None:
    if word == "the same" and not keep_rows:
        word = "not clear"  # intervals alone cannot tell
    page, failed = held(heard(before), heard(now), tmp_path, keep_rows=keep_rows)
    rise = 100 * 8 * (now - before) / SIZE
    (line,) = [line for line in page.splitlines() if line.startswith("| seeded-8 | en |")]
    assert line.endswith(f"| {word} |")
    assert f"| {rise:+.1f} |" in line
    assert ("paired bootstrap" in page) == keep_rows
    assert bool(failed) == (rise > 1)
    if failed:
        assert failed == [f"seeded-8 on dev: the mean CER rose by {rise:.1f} points, more than 1"]


def test_pairs_are_of_the_recordings_of_both_with_one_reference(tmp_path: Path) -> None:
    new = heard(1, numbers=range(2, 10))
    new[0]["reference"] = "something else"
    page, _ = held(heard(0), new, tmp_path)
    shared = [WORDS[n] for n in range(3, 8)]
    sizes = [len(w) for w in shared]
    errors = [character_counts(w, w[1:]).errors for w in shared]
    expected = paired_bootstrap(errors, [0] * 5, sizes)
    assert f"| {100 * expected.value:+.1f} | [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}] | worse |" in page


@pytest.mark.parametrize(("margin", "is_failed"), [(0.0, True), (11.0, True), (12.0, False)])
def test_the_margin_is_of_the_mean_over_languages(tmp_path: Path, margin: float, is_failed: bool) -> None:
    german = heard(0, numbers=range(8, 16), language="de")
    old = heard(0) + german
    worse = heard(2) + german  # nothing more wrong in German
    rise = 100 * 2 * len(WORDS) / SIZE / 2
    assert 11 < rise < 12
    page, failed = held(old, worse, tmp_path, margin=margin)
    assert bool(failed) == is_failed
    assert f"| seeded-8 | mean |  |  | {rise:+.1f} |" in page
    assert not held(worse, old, tmp_path, margin=margin)[1], "better is never too much"


def test_only_headlines_can_fail_and_lone_systems_are_named(tmp_path: Path) -> None:
    old = heard(0) + heard(0, system="seeded-2") + heard(0, system="ctc")
    new = heard(0) + heard(3, system="seeded-2") + heard(0, system="ar")
    page, failed = held(old, new, tmp_path)
    assert not failed
    assert "| seeded-2 | en |" in page
    assert "Only before: ctc." in page
    assert "Only now: ar." in page


def test_one_recording_is_too_few(tmp_path: Path) -> None:
    page, _ = held(heard(0, numbers=range(1)), heard(1, numbers=range(1)), tmp_path)
    assert "one recording is too few" in page


@pytest.mark.parametrize("keep_rows", [True, False])
def test_what_has_nothing_in_common_cannot_be_judged(tmp_path: Path, keep_rows: bool) -> None:
    with pytest.raises(OptionError, match="ctc on dev"):
        held(heard(0, system="ctc"), heard(0), tmp_path, keep_rows=keep_rows)


def test_what_cannot_be_compared_is_refused_beforehand(tmp_path: Path) -> None:
    path = write(tmp_path / "old", heard(0), normaliser="none")
    new = tmp_path / "new"
    for margin in (-1.0, float("nan")):
        with pytest.raises(OptionError, match="margin"):
            load_standard(path, margin, normaliser="none", rows=new)
    for same in (path.parent, path.parent / "hypotheses.jsonl"):
        with pytest.raises(OptionError, match="itself"):
            load_standard(path, 1.0, normaliser="none", rows=same)
    load_standard(path, 1.0, normaliser="basic", rows=new)  # its rows can be scored anew
    (path.parent / "hypotheses.jsonl").unlink()
    with pytest.raises(OptionError, match="--normaliser none"):
        load_standard(path, 1.0, normaliser="basic", rows=new)
    for text in ("{}", "nothing", "[]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(OptionError, match=r"not a results\.json"):
            load_standard(path, 1.0, normaliser="none", rows=new)
    with pytest.raises(OptionError, match="no report"):
        load_standard(tmp_path / "results.json", 1.0, normaliser="none", rows=new)
