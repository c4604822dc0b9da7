"""Text in, a model of letters out: n-grams counted, smoothed, thinned out, packed. See ``letters``."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from diffasr.letters import END, START, UNSEEN, Gram, Letters

ORDER = 7
"""Letters of the longest n-grams."""
THIN = 4
"""From this order on, n-grams seen fewer than ``least`` times are left out."""


def build(texts: Mapping[str, Sequence[str]], *, order: int = ORDER, least: int = 2) -> Letters:
    """A model of the lines of each language, composed (NFC) and without outer white space."""
    models = {code: _smoothed(_counted(lines, order), least) for code, lines in texts.items()}

    def everything() -> Iterator[tuple[str, str, Gram]]:
        for code, grams in models.items():
            for letters, gram in grams.items():
                yield code, letters, gram

    return Letters.packed(order, everything(), sum(len(grams) for grams in models.values()))


def _counted(lines: Iterable[str], order: int) -> list[Counter[str]]:
    """How often each n-gram occurs; of order n at n."""
    counts: list[Counter[str]] = [Counter() for _ in range(order + 1)]
    for line in lines:
        row = START + line + END
        for size in range(1, order + 1):
            counts[size].update(row[n : n + size] for n in range(len(row) - size + 1))
    return counts


def _smoothed(counts: Sequence[Counter[str]], least: int) -> dict[str, Gram]:
    """Probabilities of the n-grams that stay, and what each leaves to letters that it was not seen before.

    An n-gram that stays has a shorter one that does: the one without its first letter is at least as frequent.
    """
    shares: dict[str, float] = {}
    kept_mass, lower_mass = defaultdict[str, float](float), defaultdict[str, float](float)
    for size in range(1, len(counts)):
        seen, kinds = Counter[str](), Counter[str]()
        for letters, count in counts[size].items():
            seen[letters[:-1]] += count
            kinds[letters[:-1]] += 1
        for letters, count in counts[size].items():
            if size >= THIN and count < least:
                continue
            context, shorter = letters[:-1], letters[1:]
            below = shares[shorter] if shorter else math.exp(-UNSEEN)
            share = (count + kinds[context] * below) / (seen[context] + kinds[context])
            shares[letters] = share
            kept_mass[context] += share
            lower_mass[context] += below
    rests = {c: math.log(max(1e-6, 1 - mass) / max(1e-6, 1 - lower_mass[c])) for c, mass in kept_mass.items()}
    grams = {letters: Gram(math.log(share), min(0.0, rests.get(letters, 0.0))) for letters, share in shares.items()}
    return grams | {"": Gram(0.0, min(0.0, rests.get("", 0.0)))}
