"""What a list of hotwords brings and costs: rare words of a manifest, each clip's own among those of others.

    python benchmarks/hotwords.py ../shared/speech/dev.jsonl [--distractors 50] [--threads 1] [--half first] [--every 2]

Listed are words of five letters or more (Mandarin: runs of three characters) that the manifest holds once. Each clip is
decoded without a list, with its own words among as many of other clips of its language as asked for, and with those
others alone. Recall: of a clip's own words. False: listed words that stand in a text more often than they were said.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import diffasr
from diffasr.audio import load_audio
from diffasr.decode import Guide, decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts
from diffasr.hotwords import Hotwords
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber

WAYS = ("no list", "own words among others", "others alone")
_LETTERS, _CHARACTERS = 5, 3


@dataclass
class Clip:
    """A line of the manifest."""

    path: Path
    text: str
    language: str
    speaker: str
    own: list[str] = field(default_factory=list)
    """Its words that no other clip has."""


@dataclass
class Tally:
    """What one way to decode came to."""

    listed: int = 0
    found: int = 0
    false: int = 0
    clips: int = 0
    errors: Counts = field(default_factory=Counts)


def words(text: str, language: str) -> list[str]:
    """Candidates for a list, as errors are counted: without case and punctuation."""
    plain = normalise(text, language, "basic")
    if language == "zh":
        bare = plain.replace(" ", "")
        return [bare[n : n + _CHARACTERS] for n in range(0, len(bare) - _CHARACTERS + 1, _CHARACTERS)]
    return [word for word in plain.split() if len(word) >= _LETTERS]


def times(word: str, text: str, language: str) -> int:
    """How often a text holds a word."""
    plain = normalise(text, language, "basic")
    return plain.replace(" ", "").count(word) if language == "zh" else plain.split().count(word)


def read(manifest: Path, half: str) -> list[Clip]:
    """The clips, those of every second speaker if a half is asked for; rare words are rare in all of the manifest."""
    items = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clips = [Clip(manifest.parent / i["audio_filepath"], i["text"], i["lang"], i["speaker"]) for i in items]
    count = Counter((c.language, word) for c in clips for word in set(words(c.text, c.language)))
    for clip in clips:
        clip.own = [w for w in dict.fromkeys(words(clip.text, clip.language)) if count[clip.language, w] == 1]
    speakers = sorted({clip.speaker for clip in clips})
    chosen = {"first": speakers[::2], "second": speakers[1::2], "both": speakers}[half]
    return [clip for clip in clips if clip.speaker in chosen]


def as_written(clip: Clip, word: str) -> str:
    """A word with the capitals that the manifest gives it."""
    return next((w for w in (p.strip(".,;:!?\"'()«»¿¡„“”…") for p in clip.text.split()) if w.lower() == word), word)


def measure(
    asr: Transcriber, clip: Clip, others: Sequence[str], args: argparse.Namespace, tallies: list[Tally]
) -> None:
    """Decode one clip in the three ways."""
    speech = asr.hear([load_audio(clip.path)])
    known = [list(LANGUAGES).index(clip.language)]
    own = [as_written(clip, word) for word in clip.own]
    mixed = [*own, *others]
    random.Random(clip.text).shuffle(mixed)
    for tally, listed in zip(tallies, ([], mixed, list(others)), strict=True):
        hotwords = Hotwords(words=tuple(listed), threshold=args.threshold, bias=args.bias)
        (heard,) = decode(asr.model, speech, known, SamplingOptions(steps=args.steps), None, Guide(hotwords=hotwords))
        tally.clips += 1
        tally.listed += len(clip.own)
        tally.found += sum(times(word, heard.text, clip.language) > 0 for word in clip.own)
        for word in {w.lower() for w in mixed}:
            said = times(word, clip.text, clip.language)
            tally.false += max(0, times(word, heard.text, clip.language) - said)
        plain = [normalise(text, clip.language, "basic") for text in (clip.text, heard.text)]
        tally.errors += character_counts(*plain)


def main() -> None:
    """Measure and print a Markdown table."""
    usual = Hotwords(words=())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--distractors", type=int, default=50, help="words of other clips in each list")
    parser.add_argument("--half", choices=("first", "second", "both"), default="both", help="of the speakers")
    parser.add_argument("--every", type=int, default=1, help="of so many clips take one")
    parser.add_argument("--threshold", type=float, default=usual.threshold)
    parser.add_argument("--bias", type=float, default=usual.bias)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    asr, clips, dice = diffasr.load(args.model, threads=args.threads), read(args.manifest, args.half), random.Random(0)
    tallies = {code: [Tally() for _ in WAYS] for code in (*LANGUAGES, "all")}
    for clip in clips[:: args.every]:
        pool = [as_written(c, w) for c in clips if c.language == clip.language and c is not clip for w in c.own]
        others = dice.sample(pool, min(args.distractors, len(pool)))
        mine = [Tally() for _ in WAYS]
        measure(asr, clip, others, args, mine)
        for code in (clip.language, "all"):
            tallies[code] = [_sum(a, b) for a, b in zip(tallies[code], mine, strict=True)]
    print("| | list | own words | found | recall in percent | false words | clips | CER in percent |")
    print("|---|---|---|---|---|---|---|---|")
    for code, rows in tallies.items():
        for way, t in zip(WAYS, rows, strict=True):
            if t.clips:
                counts = f"{t.listed} | {t.found} | {100 * t.found / max(1, t.listed):.1f} | {t.false} | {t.clips}"
                print(f"| {code} | {way} | {counts} | {100 * t.errors.rate:.1f} |")


def _sum(a: Tally, b: Tally) -> Tally:
    return Tally(*(getattr(a, name) + getattr(b, name) for name in vars(a)))


if __name__ == "__main__":
    main()
