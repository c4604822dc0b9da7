"""The log of a training run (``train.loop``, log.jsonl) in, its curves out: losses, and error rates on dev.

Steps are counted through all stages. Where a run went on from an older state, what it had done after that is left out.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffasr.errors import OptionError

LOSSES = ("ctc", "ar", "diffusion")
RATES = ("cer_ctc", "cer_ar", "cer_diffusion")
POINTS = 200
"""Points of a curve, at most: each the mean of as many steps in a row."""
_Stages = dict[str, dict[int, Mapping[str, Any]]]


def read_log(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Stages with the step each begins after, and curves as lists of [step, value].

    A last line without an end is left out: the run may be writing it. Raises OptionError.
    """
    file = Path(path)
    if not file.is_file():
        raise OptionError(f"no log of a training run at {file}: name the log.jsonl that `diffasr train` wrote")
    stages: _Stages = {}
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            name, step = str(entry["stage"]), int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{file} line {number} is not of the log of `diffasr train`: {error!r}") from error
        stages = _up_to(stages, name, step)
        stages.setdefault(name, {})[step] = entry
    if not stages:
        raise OptionError(f"{file} has no whole line: wait until `diffasr train` has made a step")
    begun, first = [], 0
    entries: list[tuple[int, Mapping[str, Any]]] = []
    for name, steps in stages.items():
        last = next(reversed(steps))
        begun.append({"name": name, "after": first, "steps": last})
        entries += [(first + step, entry) for step, entry in steps.items()]
        first += last
    return {
        "stages": begun,
        "losses": {name: _thinned(_curve(entries, name)) for name in LOSSES if _curve(entries, name)},
        "rates": {name: _curve(entries, name) for name in RATES if _curve(entries, name)},
    }


def _up_to(stages: _Stages, name: str, step: int) -> _Stages:
    """What was logged before a step: of its stage the earlier steps, and the stages before."""
    if name not in stages or (next(reversed(stages[name])) < step and name == next(reversed(stages))):
        return stages
    names = list(stages)
    kept = {known: stages[known] for known in names[: names.index(name)]}
    return kept | {name: {number: entry for number, entry in stages[name].items() if number < step}}


def _curve(entries: Sequence[tuple[int, Mapping[str, Any]]], name: str) -> list[list[float]]:
    return [[step, float(entry[name])] for step, entry in entries if name in entry]


def _thinned(curve: Sequence[Sequence[float]]) -> list[list[float]]:
    size = -(-len(curve) // POINTS)
    parts = [curve[n : n + size] for n in range(0, len(curve), size)]
    return [[part[-1][0], sum(value for _, value in part) / len(part)] for part in parts]
