"""What putting one word right does for the others: the first wrong word of each clip fixed, the rest written anew.

    python benchmarks/redo.py ../shared/speech/dev.jsonl [--steps 8] [--threads 1] [--half first] [--every 2]

Each clip is transcribed; where a word (Mandarin: a character) stands for another, the first such is given its true text
and the segment is written anew around it. Counted are the characters of all other words, left and right of it apart.
So that the word is told from the steps, the same is done with the wrong word confirmed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import diffasr
from diffasr.audio import load_audio
from diffasr.evaluate.alignment import align
from diffasr.evaluate.normalise import normalise
from diffasr.evaluate.score import Counts, character_counts
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber
from diffasr.transcript import Transcript
from diffasr.windows import ListenOptions

WAYS = ("as transcribed", "wrong word confirmed", "word put right")
SIDES = ("left", "right")
Case = tuple[int, list[str], list[str], str]
"""The word that is wrong, what was said before and behind it, and what was said in its place."""


def true_words(text: str, language: str) -> list[str]:
    """As they are written, Mandarin's characters apart."""
    return list("".join(c for c in text if c.isalnum())) if language == "zh" else text.split()


def plain(words: Sequence[str], language: str) -> str:
    """Words as errors are counted."""
    return normalise(("" if language == "zh" else " ").join(words), language, "basic")


def first_wrong(heard: Sequence[str], said: Sequence[str], language: str) -> Case | None:
    """The first word that stands for another."""
    ours = [(n, plain([w], language)) for n, w in enumerate(heard)]
    theirs = [(n, plain([w], language)) for n, w in enumerate(said)]
    ours, theirs = [x for x in ours if x[1]], [x for x in theirs if x[1]]
    i = j = 0
    for true, got in align([w for _, w in theirs], [w for _, w in ours]):
        if true is not None and got is not None and true != got:
            number = theirs[i][0]
            return ours[j][0], list(said[:number]), list(said[number + 1 :]), said[number].strip(".,;:!?\"'()«»¿¡„“”…")
        i, j = i + (true is not None), j + (got is not None)
    return None


def sides(result: Transcript, wrong: int, case: Case, language: str) -> list[Counts]:
    """Errors left and right of a word."""
    words = [w.word for w in result.segments[0].words]
    _, before, behind, _ = case
    pairs = ((before, words[:wrong]), (behind, words[wrong + 1 :]))
    return [character_counts(plain(true, language), plain(got, language)) for true, got in pairs]


def kept_word(result: Transcript) -> int:
    """The word that was kept: its probability is 1."""
    return max(range(len(result.segments[0].words)), key=lambda n: result.segments[0].words[n].probability)


def measure(
    asr: Transcriber, item: dict[str, str], folder: Path, steps: int
) -> tuple[list[str], list[list[Counts]]] | None:
    """The three texts of a clip and their errors; None where no word stands for another."""
    code, samples = item["lang"], load_audio(folder / item["audio_filepath"])
    result = asr.transcribe(samples, language=code, listen=ListenOptions(vad=False, window_seconds=30.0))
    if len(result.segments) != 1:
        return None
    heard = [w.word for w in result.segments[0].words]
    case = first_wrong(heard, true_words(item["text"], code), code)
    if case is None:
        return None
    place = (0, case[0])
    confirmed = asr.redo(result, samples, keep={place: heard[case[0]]}, steps=steps)
    right = asr.redo(result, samples, keep={place: case[3]}, steps=steps)
    results = [(result, case[0]), (confirmed, kept_word(confirmed)), (right, kept_word(right))]
    return [r.text for r, _ in results], [sides(r, n, case, code) for r, n in results]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=8, help="of redo")
    parser.add_argument("--half", choices=("first", "second", "both"), default="both", help="of the speakers")
    parser.add_argument("--every", type=int, default=1, help="of so many clips take one")
    parser.add_argument("--shown", type=int, default=0, help="clips whose texts are printed")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    items = [json.loads(line) for line in args.manifest.read_text(encoding="utf-8").splitlines()]
    speakers = sorted({item["speaker"] for item in items})
    chosen = {"first": speakers[::2], "second": speakers[1::2], "both": speakers}[args.half]
    asr = diffasr.load(args.model, threads=args.threads)
    counts: dict[tuple[str, str, str], Counts] = {}
    clips = dict.fromkeys([*LANGUAGES, "all"], 0)
    for item in [item for item in items if item["speaker"] in chosen][:: args.every]:
        found = measure(asr, item, args.manifest.parent, args.steps)
        if found is None:
            continue
        if clips["all"] < args.shown:
            print("\n".join([item["text"], *found[0]]), end="\n\n")
        for code in (item["lang"], "all"):
            clips[code] += 1
            for way, errors in zip(WAYS, found[1], strict=True):
                for side, error in zip(SIDES, errors, strict=True):
                    key = code, way, side
                    counts[key] = counts.get(key, Counts()) + error
    print("| | clips | other words | CER left of it | CER right of it | both |\n|---|---|---|---|---|---|")
    for code in (code for code, number in clips.items() if number):
        for way in WAYS:
            left, right = (counts[code, way, side] for side in SIDES)
            rates = " | ".join(f"{100 * c.rate:.1f}" for c in (left, right, left + right))
            print(f"| {code} | {clips[code]} | {way} | {rates} |")


if __name__ == "__main__":
    main()
