"""Several transcripts of one clip in, one out: the words that most of them have at each place.

Source: Fiscus, ASRU 1997 (ROVER), section 2: hypotheses are aligned one after another into a network of places, then
each place is put to the vote. Here every hypothesis has one vote and a tie goes to the earlier one. The other way is to
take the hypothesis of least risk: Goel and Byrne, Computer Speech & Language 14 (2000), with word errors as the loss.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Place = list[str | None]
"""What each hypothesis has there; None where it has nothing."""


@dataclass(frozen=True, kw_only=True)
class Election:
    """What the vote came to."""

    words: tuple[str, ...]
    agreement: tuple[float, ...]
    """Share of the hypotheses that have each word."""


def elect(hypotheses: Sequence[Sequence[str]]) -> Election:
    """The word of each place of the aligned hypotheses; words are one that differ only in case or punctuation.

    Raises ValueError when there is no hypothesis.
    """
    if not hypotheses:
        raise ValueError("a vote needs at least one hypothesis")
    places: list[Place] = [[word] for word in hypotheses[0]]
    for count, words in enumerate(hypotheses[1:], 1):
        places = _joined(places, words, count)
    kept, shares = [], []
    for place in places:
        votes = Counter(_key(word) for word in place)
        winner, most = votes.most_common(1)[0]  # of equals the one met first
        if winner is not None:
            forms = Counter(word for word in place if word is not None and _key(word) == winner)
            kept.append(forms.most_common(1)[0][0])
            shares.append(most / len(place))
    return Election(words=tuple(kept), agreement=tuple(shares))


def agreements(hypotheses: Sequence[Sequence[str]]) -> list[float]:
    """How far each hypothesis is what all of them say: the mean of 1 - edits / words of the longer, in [0, 1].

    Words are one as in ``elect``.
    """
    spoken = [[_key(word) for word in words] for words in hypotheses]
    alike = [[1 - _edits(a, b) / max(1, len(a), len(b)) for b in spoken] for a in spoken]
    return [sum(row) / len(row) for row in alike]


def least_risk(hypotheses: Sequence[Sequence[str]]) -> int:
    """Which hypothesis has the fewest word errors against the others, on average; the first of equals."""
    spoken = [[_key(word) for word in words] for words in hypotheses]
    risks = [sum(_edits(a, b) for b in spoken) for a in spoken]
    return risks.index(min(risks))


def _edits(a: Sequence[str | None], b: Sequence[str | None]) -> int:
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def _key(word: str | None) -> str | None:
    if word is None:
        return None
    bare = "".join(c for c in word.casefold() if unicodedata.category(c)[0] in "LMN")
    return bare or word


def _joined(places: list[Place], words: Sequence[str], count: int) -> list[Place]:
    """The network with one more hypothesis, ``count`` being in it: the cheapest alignment, equal words free."""
    keys = [{_key(word) for word in place} for place in places]
    spoken = [_key(word) for word in words]
    rows, columns = len(places) + 1, len(words) + 1
    cost = [[i + j if i == 0 or j == 0 else 0 for j in range(columns)] for i in range(rows)]
    for i in range(1, rows):
        cost[i][0] = cost[i - 1][0] + (None not in keys[i - 1])
        for j in range(1, columns):
            cost[i][j] = min(
                cost[i - 1][j - 1] + (spoken[j - 1] not in keys[i - 1]),
                cost[i - 1][j] + (None not in keys[i - 1]),
                cost[i][j - 1] + 1,
            )
    joined: list[Place] = []
    i, j = rows - 1, columns - 1
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (spoken[j - 1] not in keys[i - 1]):
            i, j = i - 1, j - 1
            joined.append([*places[i], words[j]])
        elif i and cost[i][j] == cost[i - 1][j] + (None not in keys[i - 1]):
            i -= 1
            joined.append([*places[i], None])
        else:
            j -= 1
            joined.append([*[None] * count, words[j]])
    return joined[::-1]
