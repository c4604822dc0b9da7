"""Evidence for words in, the probability that each is right out: a logistic map, fitted on speech not trained on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from diffasr.errors import ModelError, OptionError
from diffasr.model.config import Calibration
from diffasr.words import Evidence, HeardWord

RIDGE = 1.0
"""How much the weights are held back when they are fitted: a Gaussian prior of that precision."""
_ROUNDS = 50


def judged(words: Sequence[HeardWord], calibration: Calibration | None) -> tuple[HeardWord, ...]:
    """The words with their confidence; without a calibration as they are, but where votes disagree.

    A map that was fitted on single texts knows nothing of votes: what it says counts as often as they agree. So does
    CTC's probability where there is no map.
    """
    if calibration is not None and "dissent" in calibration.weights:
        return tuple(replace(word, confidence=probability(word.evidence, calibration)) for word in words)
    return tuple(_as_often_as_agreed(word, calibration) for word in words)


def _as_often_as_agreed(word: HeardWord, calibration: Calibration | None) -> HeardWord:
    agreement = word.evidence.agreement
    if calibration is None:
        return word if agreement == 1 else replace(word, confidence=agreement * word.probability)
    return replace(word, confidence=agreement * probability(word.evidence, calibration))


def probability(evidence: Evidence, calibration: Calibration) -> float:
    """How likely a word of this evidence is right, in [0, 1]; raises ModelError for weights of unknown parts."""
    known = features(evidence)
    unknown = sorted(set(calibration.weights) - set(known))
    if unknown:
        raise ModelError(f"the calibration weighs {', '.join(unknown)}, which is no evidence: calibrate it again")
    score = calibration.bias + sum(weight * known[name] for name, weight in calibration.weights.items())
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


def features(evidence: Evidence) -> dict[str, float]:
    """The parts of the evidence as the map weighs them, and the dissent of the votes.

    Each log-probability counts as such, in nats, and as a probability: the one tells bad words from worse, the other
    good ones from better.
    """
    parts = asdict(evidence)
    dissent = 1 - parts.pop("agreement")
    return parts | {f"{name}_probability": math.exp(nats) for name, nats in parts.items()} | {"dissent": dissent}


def fit(evidence: Sequence[Evidence], is_right: Sequence[bool]) -> Calibration:
    """The logistic map that makes ``is_right`` likeliest, by Newton's method; raises OptionError without both kinds.

    A part that is the same for all words gets no weight.
    """
    if len(set(is_right)) < 2:
        raise OptionError(f"a calibration needs right words and wrong ones, got {len(is_right)} of one kind")
    rows = [features(e) for e in evidence]
    names = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    inputs = np.array([[row[name] for name in names] for row in rows])
    centre, spread = inputs.mean(0), inputs.std(0)
    known = np.column_stack(((inputs - centre) / spread, np.ones(len(rows))))  # (W, F + 1)
    right = np.array(is_right, dtype=float)
    ridge = RIDGE * np.array([1.0] * len(names) + [0.0])
    weights = np.zeros(len(names) + 1)
    for _ in range(_ROUNDS):
        sure = 1 / (1 + np.exp(-np.clip(known @ weights, -50, 50)))
        slope = known.T @ (right - sure) - ridge * weights
        bend = (known * (sure * (1 - sure))[:, None]).T @ known + np.diag(ridge + 1e-9)
        step = np.linalg.solve(bend, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    own = weights[:-1] / spread
    return Calibration(
        bias=float(weights[-1] - own @ centre), weights={n: float(w) for n, w in zip(names, own, strict=True)}
    )
