"""How sure a model may be of its words: a logistic map, learned on labelled speech that it was not trained on.

    python recipes/mini/calibrate.py MODEL work/features/dev --out MODEL [--votes 1 3] [--json FILE]

Writes the map into config.json of the folder ``--out``, which must hold the model already, and prints how well
confidence fits what is right (expected calibration error, normaliser basic). The errors are honest: the map of one half
of the speakers judges the other half, both ways; the map that is stored is learned from all of them. ``before`` is
CTC's own probability. With several numbers of votes the map learns what their dissent tells; one alone, of 1, takes a
fraction of the time and gives dissent no weight. A segment's confidence is the mean of its words'.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from diffasr import confidence, loading
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.breakdown import are_right, reliability
from diffasr.evaluate.store import speech_of
from diffasr.model.config import Calibration, ModelConfig
from diffasr.model.loaded import Model
from diffasr.text import LANGUAGES
from diffasr.train.data import FeatureStore
from diffasr.words import HeardWord

ROWS = 8  # utterances decoded together


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A word that the model wrote, and whether it is right."""

    word: HeardWord
    is_right: bool
    language: str
    segment: tuple[int, int]
    """Votes and the utterance's number."""
    half: int
    """Of the speakers."""


def judgements(model: Model, store: FeatureStore, votes: int, steps: int) -> Iterator[Judgement]:
    """Decode every utterance, its language given, and compare its words with what was said."""
    order = sorted(range(len(store.utterances)), key=lambda n: store.spans[n][1])
    options = SamplingOptions(steps=steps, votes=votes)
    for start in range(0, len(order), ROWS):
        numbers = order[start : start + ROWS]
        said = [store.utterances[n] for n in numbers]
        known = [list(LANGUAGES).index(u.language) for u in said]
        speech = speech_of(store, numbers, model)
        for number, utterance, heard in zip(numbers, said, decode(model, speech, known, options), strict=True):
            found = are_right([w.word for w in heard.words], utterance.text, utterance.language, "basic")
            half = crc32((utterance.speaker or utterance.audio).encode()) % 2
            for word, is_right in zip(heard.words, found, strict=True):
                if is_right is not None:
                    segment = (votes, number)
                    yield Judgement(
                        word=word, is_right=is_right, language=utterance.language, segment=segment, half=half
                    )


def fitted(judged: Sequence[Judgement]) -> Calibration:
    """The map of some words."""
    return confidence.fit([j.word.evidence for j in judged], [j.is_right for j in judged])


def held_out(judged: Sequence[Judgement]) -> list[float]:
    """The confidence in each word by the map of the speakers of the other half."""
    maps = [fitted([j for j in judged if j.half != half]) for half in (0, 1)]
    return [confidence.probability(j.word.evidence, maps[j.half]) for j in judged]


def report(judged: Sequence[Judgement], after: Sequence[float]) -> dict[str, Any]:
    """Reliability before and after, by language, by half and pooled, and of segments."""
    sides = {"before": [j.word.probability for j in judged], "after": list(after)}
    groups = {code: [j.language == code for j in judged] for code in LANGUAGES}
    groups |= {f"half {half}": [j.half == half for j in judged] for half in (0, 1)} | {"all": [True] * len(judged)}
    out: dict[str, Any] = {}
    for side, values in sides.items():
        pairs = [(value, j.is_right) for value, j in zip(values, judged, strict=True)]
        out[side] = {
            name: reliability([pair for pair, is_in in zip(pairs, chosen, strict=True) if is_in])
            for name, chosen in groups.items()
            if any(chosen)
        }
        segments: dict[tuple[int, int], list[tuple[float, bool]]] = {}
        for pair, j in zip(pairs, judged, strict=True):
            segments.setdefault(j.segment, []).append(pair)
        gaps = [abs(sum(p for p, _ in mine) - sum(r for _, r in mine)) / len(mine) for mine in segments.values()]
        out[side]["segments"] = {"segments": len(gaps), "mean_gap": sum(gaps) / len(gaps)}
    return out


def table(found: dict[str, Any]) -> str:
    """The report for people: errors in points."""
    lines = ["| words | number | right, % | ECE before | ECE after |", "|---|---|---|---|---|"]
    for name, before in found["before"].items():
        after = found["after"][name]
        if name == "segments":
            lines.append(f"| segments: mean gap | {before['segments']} | | {100 * before['mean_gap']:.1f} "
                         f"| {100 * after['mean_gap']:.1f} |")  # fmt: skip
        else:
            lines.append(f"| {name} | {before['words']} | {100 * before['accuracy']:.1f} | {100 * before['ece']:.1f} "
                         f"| {100 * after['ece']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def store_calibration(folder: Path, calibration: Calibration) -> None:
    """Put the map into a checkpoint's config.json, which is replaced whole."""
    place = folder / "config.json"
    config = ModelConfig.from_json(place.read_text(encoding="utf-8"))
    part = place.with_suffix(".part")
    part.write_text(replace(config, calibration=calibration).to_json(), encoding="utf-8")
    part.replace(place)


def main() -> None:
    """Decode, fit, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or mini")
    parser.add_argument("features", type=Path, help="feature store of labelled speech that was not trained on")
    parser.add_argument("--out", type=Path, help="checkpoint folder to write to; without, nothing is written")
    parser.add_argument("--votes", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    model, store = loading.load(args.model), FeatureStore(args.features)
    judged = [j for votes in args.votes for j in judgements(model, store, votes, args.steps)]
    found, calibration = report(judged, held_out(judged)), fitted(judged)
    print(table(found))
    print(calibration)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.out:
        store_calibration(args.out, calibration)


if __name__ == "__main__":
    main()
