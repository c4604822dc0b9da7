"""Recordings, one model and any number of baselines in; a row for each recording and each way to decode it out.

Every way to decode one checkpoint hears the same encoder output, timed once. Rows go to disk at once
(``evaluate.folder``), and are scored by ``evaluate.report``.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from diffasr import loading
from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, load_audio, split_at_silence
from diffasr.comparisons import ar_texts, beam_texts, ctc_texts
from diffasr.decodable import decodable
from diffasr.decode import Draft, decode
from diffasr.errors import OptionError
from diffasr.evaluate.baseline import load_baseline
from diffasr.evaluate.clock import Clock, Times
from diffasr.evaluate.folder import Folder, Row, machine_facts, peak_memory_mib, reset_peak_memory
from diffasr.evaluate.quiet import PREFIX, quiet_set
from diffasr.evaluate.sets import Clip, EvaluationSet, read_set
from diffasr.evaluate.systems import EvaluationOptions, System, systems
from diffasr.model import hub
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber, load
from diffasr.windows import ListenOptions


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one system made of one recording."""

    text: str
    found: str | None = None
    """The language that it found."""
    avg_logprob: float | None = None
    words: tuple[tuple[str, float], ...] = ()
    """With their probabilities."""
    drafts: tuple[str, ...] = ()
    """The text after each step."""


def evaluate(model: str | os.PathLike[str], specs: Sequence[str], options: EvaluationOptions, out: Path) -> None:
    """Decode every recording of the sets ``specs`` with every system, and write rows and facts to ``out``.

    Goes on where an earlier call with the same arguments stopped. Raises OptionError, ManifestError, AudioError,
    ModelError, DownloadError.
    """
    chosen = systems(options)
    sets = [quiet_set(s) if s.startswith(PREFIX) else read_set(s, limit=options.limit) for s in specs]
    _check_names(sets)
    threads = options.threads or loading.cores()
    torch = sys.modules.get("torch")  # who uses it beside this has a number of threads of their own
    before = torch.get_num_threads() if torch else 0
    asr = load(model, device=options.device, threads=threads)
    identity = {
        "model": {"name": asr.model.config.name, "fingerprint": fingerprint(model)},
        "sets": [_describe(data) for data in sets],
        "find_language": options.find_language,
        "batch": options.batch,
        "threads": threads,
        "device": options.device,
    }
    definitions = {s.name: s.definition() for s in chosen}
    folder = Folder(out, identity, definitions, machine_facts(options.device, threads))
    try:
        _run_model(asr, sets, [s for s in chosen if not s.baseline], options, folder)
        for system in chosen:
            if system.baseline:
                _run_baseline(system, sets, threads, options.find_language, folder)
    finally:
        folder.close()
        if torch:
            torch.set_num_threads(before)


def fingerprint(model: str | os.PathLike[str]) -> str:
    """SHA-256 over the files of a checkpoint, or the reference's one."""
    place, digest = hub.place_of(model), hashlib.sha256()
    names = hub.FILES if (place / "model.safetensors").is_file() else (hub.REFERENCE_FILE,)
    for path in [place / name for name in names] if place.is_dir() else [place]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _describe(data: EvaluationSet) -> dict[str, Any]:
    said = "\n".join(f"{c.id}\t{c.language}\t{c.text}" for c in data.clips)
    return {"name": data.name, "clips": len(data.clips), "digest": hashlib.sha256(said.encode()).hexdigest()}


def _check_names(sets: Sequence[EvaluationSet]) -> None:
    names = [data.name for data in sets]
    if len(set(names)) < len(names):
        raise OptionError(f"two sets have one name in {', '.join(names)}: rows could not be told apart; rename one")


def batches(clips: Sequence[Clip], size: int) -> Iterator[list[Clip]]:
    """Groups of recordings of one language and of like length; the same each time."""
    ordered = sorted(clips, key=lambda c: (list(LANGUAGES).index(c.language), c.duration, c.id))
    for code in LANGUAGES:
        mine = [c for c in ordered if c.language == code]
        for first in range(0, len(mine), size):
            yield mine[first : first + size]


def _run_model(
    asr: Transcriber,
    sets: Sequence[EvaluationSet],
    chosen: Sequence[System],
    options: EvaluationOptions,
    folder: Folder,
) -> None:
    """All systems of the checkpoint, recording by recording: each is loaded and heard once."""
    reset_peak_memory()
    clock = Clock(decodable(asr.model.network))
    timed = Transcriber(replace(asr.model, network=clock), batch_seconds=asr.batch_seconds)
    warm: set[str] = set()
    for data in sets:
        for group in batches(data.clips, options.batch):
            left = [(s, [c for c in group if (s.name, s.seed, data.name, c.id) not in folder.done]) for s in chosen]
            todo = [(system, clips) for system, clips in left if clips]
            sounds = {c.id: load_audio(c.audio) for c in group} if todo else {}
            heard: dict[tuple[str, ...], tuple[Any, Times]] = {}
            for system, clips in todo:
                listened = [sounds[c.id] for c in clips]
                language = None if options.find_language else clips[0].language
                ids = tuple(c.id for c in clips)
                if not warm:
                    _listen(timed, clock, listened)
                if ids not in heard:
                    heard[ids] = _listen(timed, clock, listened)
                speech, listening = heard[ids]
                if data.name.startswith(PREFIX):
                    speech = None  # the detector is what is measured here, so the whole way of a recording is gone
                if system.name not in warm:  # the first call pays for what later ones find ready
                    _write(timed, clock, system, speech or listened, language)
                    clock.take()
                    warm.add(system.name)
                written = _write(timed, clock, system, speech or listened, language)
                times = clock.take()
                whole = Times(seconds=listening.seconds | times.seconds, calls=listening.calls | times.calls)
                if not options.find_language:
                    written = [replace(w, found=None) for w in written]
                folder.append(rows_of(system, data.name, clips, written, whole, sounds))
    if warm:
        folder.note(peak_mib={"diffasr": peak_memory_mib()})


def _listen(timed: Transcriber, clock: Clock, sounds: Sequence[Samples]) -> tuple[Any, Times]:
    """What the encoder hears of recordings that fit its window, and the cost; None when one does not."""
    if max(map(len, sounds)) > WINDOW_SECONDS * SAMPLE_RATE_HZ:
        return None, Times(seconds={}, calls={})
    with clock.rest("features"):
        speech = timed.hear(sounds)
    return speech, clock.take()


def _write(timed: Transcriber, clock: Clock, system: System, heard: Any, language: str | None) -> list[Written]:
    """Texts of some recordings by one system, from the encoder's output or, where they are long, from the sound."""
    with clock.rest("text"):
        if not isinstance(heard, list):
            return _write_window(timed, clock, system, heard, language)
        return [_write_long(timed, clock, system, sound, language) for sound in heard]


def _write_window(timed: Transcriber, clock: Clock, system: System, speech: Any, language: str | None) -> list[Written]:
    rows = len(speech)
    known = None if language is None else [list(LANGUAGES).index(language)] * rows
    if system.decoder == "ctc":
        return [Written(text=text) for text in ctc_texts(timed.model, speech)]
    if system.decoder == "ctc_beam" and system.together is not None:
        return [Written(text=text) for text in beam_texts(timed.model, speech, known, system.together)]
    if system.options is None:
        texts = ar_texts(timed.model, speech, known, together=system.together)
        return [Written(text=t, found=list(LANGUAGES)[n]) for t, n in zip(texts, clock.languages, strict=True)]
    drafts: list[list[str]] = [[] for _ in range(rows)]

    def show(draft: Draft, shown: list[int]) -> None:
        for place, row in enumerate(shown):
            drafts[row].append(timed.model.tokenizer.decode(draft.tokens[place].tolist()))

    return [
        Written(
            text=d.text, found=d.language, avg_logprob=d.avg_logprob,
            words=tuple((w.word, w.belief) for w in d.words), drafts=tuple(texts),
        )
        for d, texts in zip(decode(timed.model, speech, known, system.options, show), drafts, strict=True)
    ]  # fmt: skip


def _write_long(timed: Transcriber, clock: Clock, system: System, sound: Samples, language: str | None) -> Written:
    """A recording of any length, in windows. The language is that of the first window where each finds its own."""
    if system.options is not None:
        listen = ListenOptions(vad=system.vad)
        result = timed.transcribe(sound, language=language, options=system.options, listen=listen)
        words = tuple((w.word, w.probability) for s in result.segments for w in s.words)
        return Written(text=result.text, found=result.language, words=words)
    parts: list[Written] = []
    for start, end in split_at_silence(sound):
        parts += _write_window(timed, clock, system, timed.hear([sound[start:end]]), language)
    spaced = "" if (language or parts[0].found) == "zh" else " "
    return Written(text=spaced.join(p.text for p in parts if p.text), found=parts[0].found)


def _run_baseline(
    system: System, sets: Sequence[EvaluationSet], threads: int, find_language: bool, folder: Folder
) -> None:
    """One baseline at one beam over everything that it has not written yet; not loaded where that is nothing."""
    todo = [(d.name, c) for d in sets for c in d.clips if (system.name, None, d.name, c.id) not in folder.done]
    if not todo:
        return
    reset_peak_memory()
    baseline = load_baseline(system.baseline, beam=system.beam, threads=threads)
    is_warm = False
    for name, clip in todo:
        sound = load_audio(clip.audio)
        language = None if find_language else clip.language
        if not is_warm:
            baseline.transcribe(sound, language)
            is_warm = True
        start = perf_counter()
        text, found = baseline.transcribe(sound, language)
        times = Times(seconds={"transcribe": perf_counter() - start}, calls={"transcribe": 1})
        folder.append(
            rows_of(
                system, name, [clip], [Written(text=text, found=found if find_language else None)],
                times, {clip.id: sound},
            )
        )  # fmt: skip
    peaks = folder.facts["sessions"][-1].get("peak_mib", {})
    folder.note(peak_mib=peaks | {system.name: peak_memory_mib()})
    versions = folder.facts["sessions"][-1]["versions"]
    folder.note(versions=versions | dict(baseline.versions))


def rows_of(
    system: System,
    name: str,
    clips: Sequence[Clip],
    written: Sequence[Written],
    times: Times,
    sounds: dict[str, Samples],
) -> list[Row]:
    """Raw rows of recordings that were decoded together; each carries its equal share of seconds and calls."""
    share = 1 / len(clips)
    return [
        {
            "system": system.name,
            "decoder": system.decoder,
            "steps": system.options.steps if system.options else None,
            "start": system.options.start if system.options else None,
            "seed": system.seed,
            "set": name,
            "id": clip.id,
            "audio": str(clip.audio) if isinstance(clip.audio, str) else "",
            "duration": round(len(sounds[clip.id]) / SAMPLE_RATE_HZ, 3),
            "language": clip.language,
            "speaker": clip.speaker,
            "found": wrote.found,
            "reference": clip.text,
            "hypothesis": wrote.text,
            "avg_logprob": wrote.avg_logprob,
            "words": [[word, round(probability, 4)] for word, probability in wrote.words],
            "drafts": list(wrote.drafts),
            "seconds": {stage: round(seconds * share, 6) for stage, seconds in times.seconds.items()},
            "calls": {stage: count * share for stage, count in times.calls.items()},
            "batch": len(clips),
        }
        for clip, wrote in zip(clips, written, strict=True)
    ]
