"""How well words are put in time: synthetic speech whose word boundaries are known, aligned and measured.

    python benchmarks/word_times.py MANIFEST [--model mini] [--count 15] [--json FILE]

Texts are those of MANIFEST; German gets some of long compounds beside them, Mandarin is counted by characters.
``fluent``: espeak-ng says the whole sentence and tells when each word began and ended (a closure before p, t or k
belongs to the word). ``gaps`` and ``joined``: each word is said alone (SVOX Pico; Hindi and Mandarin by espeak-ng),
trimmed, and put behind the one before after 50 to 250 ms or none at all. ``true text``: what was said is aligned, so
that only timing is measured; ``recognised``: what the model writes, and of that the right words.

Needs `pip install espeakng-loader py-nanotts soxr kaldialign`. The voices are not people, and the model heard some of
them in training: the table compares ways of timing, it does not promise these errors on a telephone.
"""

import argparse
import ctypes
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

import diffasr
from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.decode import decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.alignment import align
from diffasr.text import LANGUAGES
from diffasr.train.data import read_manifest
from diffasr.transcribe import Transcriber
from diffasr.words import HeardWord, place_words, word_times

VOICES = {"en": "en-us", "de": "de", "fr": "fr-fr", "es": "es", "hi": "hi", "zh": "cmn"}
PICO = {"en": "en-US", "de": "de-DE", "fr": "fr-FR", "es": "es-ES"}
COMPOUNDS = [
    "Die Geschwindigkeitsbegrenzung auf der Autobahn ist umstritten",
    "Der Bundesverfassungsgerichtspräsident sprach gestern Nachmittag",
    "Unsere Haftpflichtversicherungsgesellschaft zahlt den Wasserrohrbruch",
    "Am Donaudampfschifffahrtsmuseum gibt es eine Straßenbahnhaltestelle",
    "Das Lebensmittelgeschäft verkauft Sonnenblumenkerne und Kartoffelsuppe",
]
WORD, PHONEME, LAST_EVENT, SENTENCE_END = 1, 7, 0, 5


@dataclass(frozen=True, kw_only=True)
class Said:
    """Speech and, in seconds, when each of its words begins and ends."""

    samples: Samples
    words: tuple[tuple[str, float, float], ...]
    language: str
    kind: str

    @property
    def text(self) -> str:
        """The words in a row."""
        return ("" if self.language == "zh" else " ").join(word for word, _, _ in self.words)


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


class Espeak:
    """espeak-ng through its library, which tells what it says at which sample (speak_lib.h, espeak_EVENT)."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate_hz = self.library.espeak_Initialize(1, 0, espeakng_loader.get_data_path().encode(), 1)
        self.sound: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, str]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self.callback = kind(self._receive)  # kept: the library holds no reference
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, sound: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if sound and count:
            self.sound.append(np.ctypeslib.as_array(sound, (count,)).copy())
        place = 0
        while (event := events[place]).type != LAST_EVENT:
            name = event.id.decode(errors="replace") if event.type == PHONEME else ""
            self.events.append((event.sample, event.type, event.text_position - 1, name))
            place += 1
        return 0

    def say(self, text: str, language: str, *, words_a_minute: int, pitch: int) -> tuple[Samples, list[list[float]]]:
        """Samples at 16 kHz, and first letter, start and end of each word that the engine took for one."""
        self.sound, self.events = [], []
        self.library.espeak_SetVoiceByName(VOICES[language].encode())
        self.library.espeak_SetParameter(1, words_a_minute, 0)
        self.library.espeak_SetParameter(3, pitch, 0)
        raw = text.encode()
        self.library.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        words: list[list[float]] = []
        is_open = has_sound = False
        for sample, kind, place, name in self.events:
            second = sample / self.rate_hz
            is_pause = kind == SENTENCE_END or (kind == PHONEME and name.startswith("_"))
            if is_open and (kind == WORD or (is_pause and has_sound)):
                words[-1][2], is_open = second, False
            elif is_open and kind == PHONEME and not is_pause and not has_sound:
                words[-1][1], has_sound = second if words[-1][1] < 0 else words[-1][1], True
            elif is_open and is_pause:
                words[-1][1] = -1.0  # it begins behind the pause
            if kind == WORD and place >= 0:
                words.append([place, second, second])
                is_open, has_sound = True, False
        samples = np.concatenate(self.sound).astype(np.float32) / 32768
        return np.asarray(soxr.resample(samples, self.rate_hz, SAMPLE_RATE_HZ), np.float32), words


def trimmed(samples: Samples) -> Samples:
    """Without what is 40 dB under the loudest 5 ms, at both ends."""
    hop = SAMPLE_RATE_HZ // 200
    power = np.square(samples[: len(samples) // hop * hop]).reshape(-1, hop).mean(1)
    loud = np.flatnonzero(power > power.max(initial=1e-9) * 1e-4)
    return samples[loud[0] * hop : (loud[-1] + 1) * hop] if len(loud) else samples[:0]


class Speakers:
    """Both engines, and what they make of a sentence; with white noise so far under the loudest sample."""

    def __init__(self, noise_db: float) -> None:
        from py_nanotts import NanoTTS

        self.espeak, self.pico, self.noise_db = Espeak(), NanoTTS(), noise_db

    def fluent(self, words: Sequence[str], language: str, dice: np.random.Generator) -> Said | None:
        """A sentence in one breath; NaN where the engine says two words in one, None where it goes wrong."""
        text = " ".join(words)
        pace, pitch = int(dice.integers(120, 175)), int(dice.integers(30, 70))
        samples, heard = self.espeak.say(text, language, words_a_minute=pace, pitch=pitch)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        times: list[list[float]] = [[] for _ in words]
        for place, start, end in heard:
            times[int(np.searchsorted(starts, place, side="right")) - 1] += [start, end]
        if any(t and max(t) - min(t) < 0.02 for t in times):
            return None
        lead, said = float(dice.uniform(0.05, 0.4)), []
        for word, mine, after in zip(words, times, [*times[1:], [0.0]], strict=True):
            start, end = (lead + min(mine), lead + max(mine)) if mine else (math.nan, math.nan)
            said.append((word, start, end if after else math.nan))  # said in one with the next
        quiet = np.zeros(int(lead * SAMPLE_RATE_HZ), np.float32)
        noisy = self._noisy(np.concatenate([quiet, samples, quiet]), dice)
        return Said(samples=noisy, words=tuple(said), language=language, kind="fluent")

    def joined(self, words: Sequence[str], language: str, dice: np.random.Generator, *, has_gaps: bool) -> Said | None:
        """Words said one by one and put together; None where one has no sound."""
        pieces: list[Samples] = [np.zeros(int(dice.uniform(0.05, 0.4) * SAMPLE_RATE_HZ), np.float32)]
        said, now = [], len(pieces[0])
        pace, pitch = float(dice.uniform(0.85, 1.2)), float(dice.uniform(0.8, 1.25))
        for word in words:
            sound = trimmed(self._alone(word, language, pace, pitch))
            if len(sound) < SAMPLE_RATE_HZ // 50:
                return None
            said.append((word, now / SAMPLE_RATE_HZ, (now + len(sound)) / SAMPLE_RATE_HZ))
            gap = np.zeros(int(dice.uniform(0.05, 0.25) * SAMPLE_RATE_HZ) if has_gaps else 0, np.float32)
            pieces += [sound, gap]
            now += len(sound) + len(gap)
        pieces.append(np.zeros(SAMPLE_RATE_HZ // 5, np.float32))
        kind = "gaps" if has_gaps else "joined"
        return Said(samples=self._noisy(np.concatenate(pieces), dice), words=tuple(said), language=language, kind=kind)

    def _noisy(self, samples: Samples, dice: np.random.Generator) -> Samples:
        peak = np.abs(samples).max()
        noise = dice.standard_normal(len(samples)) * peak * 10 ** (-self.noise_db / 20)
        return np.asarray(0.5 / peak * (samples + noise), np.float32)

    def _alone(self, word: str, language: str, pace: float, pitch: float) -> Samples:
        if language not in PICO:
            return self.espeak.say(word, language, words_a_minute=int(150 * pace), pitch=int(50 * pitch))[0]
        pcm = self.pico.speak(word, voice=PICO[language], pitch=pitch, speed=pace)
        return (np.frombuffer(pcm, np.int16) / 32768).astype(np.float32)


def sentences(manifest: Path, language: str, count: int) -> Iterator[list[str]]:
    """Words of ``count`` texts of three to twelve words, bare of punctuation; in Mandarin of characters."""
    texts = [u.text for u in read_manifest(manifest) if u.language == language]
    wanted = [*COMPOUNDS, *texts] if language == "de" else texts
    found = 0
    for text in wanted:
        bare = unicodedata.normalize("NFC", re.sub(r"[^\w\s'’\u0900-\u0963-]", " ", text))
        words = [c for c in bare if c.isalpha()] if language == "zh" else bare.split()
        if 3 <= len(words) <= 12 and not re.search(r"\d", bare) and found < count:
            found += 1
            yield words


def speech(
    manifest: Path, count: int, languages: Sequence[str], *, seed: int = 0, noise_db: float = 50.0
) -> Iterator[Said]:
    """All utterances of the test."""
    speakers = Speakers(noise_db)
    for language in languages:
        for number, words in enumerate(sentences(manifest, language, count)):
            dice = np.random.default_rng([seed, number])
            made = (
                speakers.fluent(words, language, dice),
                speakers.joined(words, language, dice, has_gaps=True),
                speakers.joined(words, language, dice, has_gaps=False),
            )
            yield from (said for said in made if said is not None)


Error = tuple[float, float]
"""Of a start and of an end, in seconds: positive is late, NaN not known."""


def old_times(words: Sequence[HeardWord], slot: float) -> list[tuple[float, float]]:
    """As it was before the sound was looked at: from the first label's audio token to the end of the last one's."""
    return [(slot * w.first, slot * (w.last + 1)) for w in words]


def errors(said: Said, words: Sequence[HeardWord], slot: float) -> list[tuple[str, Error, Error]]:
    """Of each right word, in any spelling of case: the word, its errors before and after refinement."""
    pairs = align([w.casefold() for w, _, _ in said.words], [w.word.strip(".,!?;:。，").casefold() for w in words])
    out, true, found = [], 0, 0
    sides = list(zip(old_times(words, slot), word_times(words, said.samples, slot), strict=True))
    for expected, heard in pairs:
        if expected is not None and expected == heard:
            word, start, end = said.words[true]
            before, after = [(s - start, e - end) for s, e in sides[found]]
            out.append((word, before, after))
        true += expected is not None
        found += heard is not None
    return out


def measured(rows: Sequence[Error]) -> dict[str, float]:
    """Mean absolute errors in milliseconds and the share of starts and ends within 100 ms, in percent."""
    known = np.abs(np.array(rows, dtype=float).reshape(-1, 2))
    ends = known[~np.isnan(known)]
    return {
        "starts_ms": 1000 * float(np.nanmean(known[:, 0])),
        "ends_ms": 1000 * float(np.nanmean(known[:, 1])),
        "within_100_ms": 100 * float(np.mean(ends < 0.1)),
    }


def rows_of(said: Said, found: Sequence[tuple[str, Error, Error]], task: str) -> list[dict[str, Any]]:
    """The words of an utterance, with what the tables are sorted by."""
    return [
        {"task": task, "language": said.language, "kind": said.kind, "word": w, "before": b, "after": a}
        for w, b, a in found
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each task, language and kind; for long German words; and for all of a task."""
    keys = [("task", "language", "kind"), ("task", "language"), ("task",)]
    out = []
    for key in keys:
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(tuple(row[k] for k in key), []).append(row)
        out += [_line(" ".join(name), mine) for name, mine in groups.items()]
    long = [r for r in rows if r["language"] == "de" and len(r["word"]) >= 15]
    return [*out, *([_line("de words of 15 letters or more", long)] if long else [])]


def _line(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sides = {side: measured([row[side] for row in rows]) for side in ("before", "after")}
    return {"words": name, "number": len(rows)} | sides


def shown(lines: Sequence[dict[str, Any]]) -> str:
    """The table for people."""
    out = [
        "| words | number | before: starts, ends, within 100 ms | after: starts, ends, within 100 ms |",
        "|---|---|---|---|",
    ]
    for line in lines:
        cells = [
            f"{s['starts_ms']:.0f} ms, {s['ends_ms']:.0f} ms, {s['within_100_ms']:.0f} %"
            for s in (line["before"], line["after"])
        ]
        out.append(f"| {line['words']} | {line['number']} | {cells[0]} | {cells[1]} |")
    return "\n".join(out)


def listened(asr: Transcriber, said: Said, *, recognise: bool) -> list[dict[str, Any]]:
    """Both tasks on one utterance."""
    model = asr.model
    slot = 0.02 * 2**model.config.projector.strides
    speech = asr.hear([said.samples])
    (logits,) = model.network.ctc_rows(speech)
    true = place_words(model.tokenizer, logits, said.text, said.language)
    rows = rows_of(said, errors(said, true, slot), "true text")
    if recognise:
        known = [list(LANGUAGES).index(said.language)]
        (heard,) = decode(model, speech, known, SamplingOptions())
        rows += rows_of(said, errors(said, heard.words, slot), "recognised")
    return rows


def main() -> None:
    """Make the speech, align it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=15, help="texts a language")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--seed", type=int, default=0, help="of pace, pitch, gaps and noise")
    parser.add_argument("--noise-db", type=float, default=50.0, help="noise this far under the loudest sample")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--true-text-only", action="store_true", help="leave out what the model recognises")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    args = parser.parse_args()
    asr = diffasr.load(args.model, threads=args.threads)
    rows: list[dict[str, Any]] = []
    for said in speech(args.manifest, args.count, args.languages.split(","), seed=args.seed, noise_db=args.noise_db):
        rows += listened(asr, said, recognise=not args.true_text_only)
    lines = table(rows)
    print(shown(lines))
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
