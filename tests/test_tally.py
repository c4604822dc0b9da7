"""Rows are counted once each, by recording; a pair of systems is compared on what both wrote."""

import pytest
from test_report import WORDS, row

from diffasr.evaluate.score import Counts, bootstrap
from diffasr.evaluate.tally import ALL, Tally, measure, paired, tally


def test_a_recording_pools_its_seeds_and_keeps_its_length() -> None:
    rows = [row(0, "diffusion-8", text, seed=n, duration=3.5) for n, text in enumerate(["alpha beta", "alpha", ""])]
    (found,) = tally(rows, "basic")["dev", "diffusion-8"].values()
    assert (found.runs, found.wrong, found.empty, found.duration, found.speaker) == (3, 2, 1, 3.5, "s0")
    assert found.characters == Counts(hits=15, deletions=15)
    assert found.words == Counts(hits=3, deletions=3)


def test_a_measure_is_the_bootstrap_of_its_counts() -> None:
    tallies = [Tally(language="en", speaker="") for _ in range(3)]
    counts = [Counts(hits=5, substitutions=n) for n in range(3)]
    found = measure(counts, tallies)
    assert found is not None
    expected = bootstrap([0, 1, 2], [5, 6, 7])
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert (found["hits"], found["substitutions"], found["size"]) == (15, 3, 18)
    assert measure([Counts(insertions=1)], tallies[:1]) is None, "nothing was said: there is no rate"


def test_a_pair_is_about_what_both_wrote() -> None:
    ours = tally([row(n, "ctc", WORDS[n][1:]) for n in range(4)], "basic")["dev", "ctc"]
    theirs = tally([row(n, "ar", WORDS[n], language="en" if n else "de") for n in range(1, 6)], "basic")["dev", "ar"]
    found = paired(ours, theirs)
    assert found is not None
    assert found["recordings"] == 3
    assert found["second"] == 0
    assert found["first"] == found["difference"]["value"] == pytest.approx(3 / sum(len(WORDS[n]) for n in (1, 2, 3)))
    assert paired(ours, theirs, language="de") is None
    assert paired(ours, {}, language=ALL) is None
    words = paired(ours, theirs, measure="words")
    assert words is not None and words["first"] == pytest.approx(3 / 6)
