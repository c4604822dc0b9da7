"""Two systems side by side: the difference is the report's, the worst recordings come first, aligned."""

import sys

import pytest
from test_report import WORDS, both, row

from diffasr.errors import OptionError
from diffasr.evaluate.compare import GAP, aligned, compare
from diffasr.evaluate.report import build_report


def test_it_agrees_with_the_report() -> None:
    rows = both("seeded-8", "ctc")
    (found,) = build_report(rows, "basic", {})["comparisons"]
    text = compare(rows, "seeded-8", "ctc", "basic")
    difference = found["difference"]
    assert f"| en | CER | 0.0 | {100 * found['second']:.1f} | {100 * difference['value']:+.1f} |" in text
    assert f"| {difference['p']:.3f} | 8 |" in text
    assert "(normaliser: basic)" in text
    turned = compare(rows, "ctc", "seeded-8", "basic")
    assert f"| {100 * found['second']:.1f} | 0.0 | {-100 * difference['value']:+.1f} |" in turned


def test_recordings_that_differ_most_come_first_and_equal_ones_not_at_all() -> None:
    rows = [row(n, "ctc", WORDS[n]) for n in range(3)]
    rows += [row(0, "ar", WORDS[0]), row(1, "ar", "gamma dlta"), row(2, "ar", "")]
    text = compare(rows, "ctc", "ar", "basic")
    assert text.index("dev 2 [en]: 0 against 13") < text.index("dev 1 [en]: 0 against 1 ")
    assert "dev 0" not in text
    assert "dev 1" not in compare(rows, "ctc", "ar", "basic", most=1)
    assert compare(rows[:3] + rows[3:4], "ctc", "ar", "basic").endswith("None.")


@pytest.mark.parametrize(("reference", "hypothesis", "code"), [
    ("the cat sat", "the bat sat down", "en"), ("a b c", "", "de"), ("汉语好", "汉鱼", "zh"),
])  # fmt: skip
def test_alignment_keeps_both_texts(reference: str, hypothesis: str, code: str) -> None:
    upper, lower = aligned(reference, hypothesis, code)
    for line, text in ((upper, reference), (lower, hypothesis)):
        kept = [word for word in line.split() if word != GAP]
        assert kept == (list(text) if code == "zh" else text.split())
    assert len(upper.split()) == len(lower.split())


def test_a_system_that_is_not_there_is_named() -> None:
    with pytest.raises(OptionError, match="no system 'x'"):
        compare(both("seeded-8", "ctc"), "ctc", "x", "basic")


def test_without_kaldialign_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(OptionError, match=r"diffasr\[evaluate\]"):
        aligned("a", "b", "en")
