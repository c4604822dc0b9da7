"""Laws of the vote: one voice is kept, the majority wins, and it does not matter who else agrees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.vote import agreements, elect, least_risk

words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat"]), max_size=7)


@given(words, st.integers(1, 4))
def test_who_all_say_the_same_is_elected_whole(said: list[str], voters: int) -> None:
    election = elect([said] * voters)
    assert list(election.words) == said
    assert election.agreement == (1.0,) * len(said)


@given(words, words)
def test_two_of_three_win_in_any_order(said: list[str], other: list[str]) -> None:
    for ballots in ([said, said, other], [said, other, said], [other, said, said]):
        assert list(elect(ballots).words) == said


@given(words, words)
def test_of_two_that_differ_the_first_wins_where_it_has_a_word(first: list[str], second: list[str]) -> None:
    election = elect([first, second])
    assert list(election.words) == first
    assert set(election.agreement) <= {0.5, 1.0}


@pytest.mark.parametrize(
    ("ballots", "elected", "agreement"),
    [
        (["the cat sat", "the bat sat", "the cat sat down"], "the cat sat", [1, 2 / 3, 1]),
        (["a cat", "the cat", "the dog"], "the cat", [2 / 3, 2 / 3]),
        (["cat", "the cat sat", "the cat sat"], "the cat sat", [2 / 3, 1, 2 / 3]),
        (["", "yes", ""], "", []),
        (["Yes, sir", "yes sir", "no sir"], "Yes, sir", [2 / 3, 1]),
    ],
)
def test_each_error_is_outvoted_where_it_stands(ballots: list[str], elected: str, agreement: list[float]) -> None:
    election = elect([b.split() for b in ballots])
    assert " ".join(election.words) == elected
    assert election.agreement == pytest.approx(agreement)


def test_no_ballot_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        elect([])


@given(st.lists(words, min_size=1, max_size=5))
def test_agreement_is_a_share_and_1_where_all_say_the_same(ballots: list[list[str]]) -> None:
    shares = agreements(ballots)
    assert all(0 < share <= 1 for share in shares)
    assert (min(shares) == 1) == all(ballot == ballots[0] for ballot in ballots)
    chosen = least_risk(ballots)
    assert chosen == ballots.index(ballots[chosen]), "the first of those that say it"


@given(words, words)
def test_the_majority_has_the_least_risk_in_any_order(said: list[str], other: list[str]) -> None:
    for ballots in ([said, said, other], [said, other, said], [other, said, said]):
        assert ballots[least_risk(ballots)] == said


def test_least_risk_takes_a_whole_text_where_the_election_mixes() -> None:
    ballots = [b.split() for b in ("a b x d e", "a b c d y", "z b c d e")]
    assert " ".join(elect(ballots).words) == "a b c d e"
    assert least_risk(ballots) == 0
    assert least_risk([b.split() for b in ("one two three", "one too three", "one too tree")]) == 1
    assert least_risk([["Yes,"], ["no"], ["yes"]]) == 0, "punctuation is no error"
