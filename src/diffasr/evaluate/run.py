"""A manifest and a model in, a table of error rates out, from the audio files on: the path that users take."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from diffasr.audio import Samples, Source, load_audio
from diffasr.decode import ar_texts, ctc_texts
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.evaluate.score import error_rates
from diffasr.text import LANGUAGES
from diffasr.train.data import Utterance, read_manifest
from diffasr.transcribe import Transcriber, load


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to decode one checkpoint: a name for the table, and what the diffusion ones are drawn with."""

    name: str
    kind: Literal["ctc", "ar", "diffusion"]
    options: SamplingOptions = field(default_factory=SamplingOptions)


def systems(decoders: Sequence[str], steps: Sequence[int], starts: Sequence[str]) -> list[System]:
    """CTC and autoregressive first, then diffusion from each start at each number of steps."""
    base = SamplingOptions()
    found = [System(name="ctc", kind="ctc")] if "ctc" in decoders else []
    if "ar" in decoders:
        found.append(System(name="autoregressive", kind="ar"))
    for start in starts if "diffusion" in decoders else ():
        for count in steps:
            options = replace(base, steps=count, start=start)  # type: ignore[arg-type]
            found.append(System(name=f"diffusion, from {start}, {count} steps", kind="diffusion", options=options))
    return found


def hypotheses(
    asr: Transcriber, utterances: Sequence[Utterance], system: System, *, find_language: bool, rows: int = 16
) -> list[dict[str, Any]]:
    """What ``system`` makes of each recording: reference, hypothesis, language, and the language found."""
    out: list[dict[str, Any]] = []
    ordered = sorted(utterances, key=lambda u: (u.language, u.duration))
    for code in LANGUAGES:
        mine = [u for u in ordered if u.language == code]
        for first in range(0, len(mine), rows):
            group = mine[first : first + rows]
            texts, found = _write(asr, [load_audio(u.audio) for u in group], system, None if find_language else code)
            for utterance, text, said in zip(group, texts, found, strict=True):
                out.append(
                    {
                        "system": system.name,
                        "audio": utterance.audio,
                        "language": code,
                        "found": said,
                        "reference": utterance.text,
                        "hypothesis": text,
                    }
                )
    return out


def _write(
    asr: Transcriber, sounds: Sequence[Samples], system: System, language: str | None
) -> tuple[list[str], list[str]]:
    """Texts and languages of some recordings by one system. CTC writes without naming a language."""
    match system.kind:
        case "ctc":
            return ctc_texts(asr.model, asr.hear(sounds)), [language or ""] * len(sounds)
        case "ar":
            known = None if language is None else torch.full((len(sounds),), list(LANGUAGES).index(language))
            return ar_texts(asr.model, asr.hear(sounds), known), [language or ""] * len(sounds)
        case "diffusion":
            results = asr.transcribe(list[Source](sounds), language=language, options=system.options)
            return [r.text for r in results], [r.language for r in results]


def score_manifest(args: argparse.Namespace) -> str:
    """Run ``diffasr score``: a Markdown table of CER in percent, a row a system."""
    asr = load(args.model)
    utterances = read_manifest(args.manifest)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for system in systems(args.decoders, args.steps, args.start):
        made = hypotheses(asr, utterances, system, find_language=args.find_language)
        rows += made
        rates = error_rates((r["reference"], r["hypothesis"], r["language"]) for r in made)
        if not lines:
            lines = [f"| decoder | {' | '.join(rates)} | mean |", "|---" * (len(rates) + 2) + "|"]
        cells = [f"{100 * rate:.1f}" for rate in (*rates.values(), sum(rates.values()) / len(rates))]
        lines.append(f"| {system.name} | {' | '.join(cells)} |")
        if args.find_language and system.kind == "diffusion":
            right = sum(r["found"] == r["language"] for r in made)
            lines.append(f"| language named rightly: {right} of {len(made)} |")
    if args.out is not None:
        Path(args.out).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return "\n".join(lines)
