"""What was decoded of a window in; whether to believe it out."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

from diffasr.diffusion.options import SamplingOptions
from diffasr.windows import ListenOptions
from diffasr.words import HeardWord

LONGEST_LOOP = 10
"""Words, or Chinese characters, of the longest loop that is looked for."""
_FEWEST = 8  # below, "no, no, no, no" is what people say
_HALF = 0.09  # CTC's evidence that counts half: the least clear speech of the dev set has 0.06, most noise under 0.04
_SPARSE, _SPARSE_HALF = 1.5, 0.5  # letters for each second behind the first up to which evidence must be so much better


def no_speech_probability(speech_probability: float, words: Sequence[HeardWord], seconds: float) -> float:
    """How likely it is that nobody speaks in a window of so many seconds, in [0, 1]; not calibrated.

    speech_probability: the detector's mean where it hears speech. words: of the text, with CTC's probability of each.
    Where CTC has no room for the text all of these are 0, and the detector decides alone.
    """
    evidence = sum(word.probability for word in words) / max(1, len(words))
    letters = sum(c.isalnum() for word in words for c in word.word)
    half = _SPARSE_HALF if letters <= _SPARSE * (seconds - 1) else _HALF
    heard = evidence**2 / (evidence**2 + half**2) if evidence else 1.0
    return 1 - speech_probability * heard


def is_loop(text: str, language: str, options: ListenOptions) -> bool:
    """Whether a text goes round in a loop, by either of two bounds."""
    return squeezed(text) > options.compression_ratio or repetition(text, language) > options.repetition


def squeezed(text: str) -> float:
    """Letters of ``text`` over the bytes that zlib makes of them, one byte going in for each.

    In UTF-8 two of three bytes of any Hindi letter are the same, and long sentences would pass for loops.
    """
    raw = bytes(ord(letter) & 255 for letter in text)
    return len(raw) / len(zlib.compress(raw))


def another_try(options: SamplingOptions, number: int) -> SamplingOptions:
    """Options for decoding a loop again: another seed, and noise on the canvas where there was none."""
    return replace(options, seed=options.seed + number, seed_noise=max(options.seed_noise, 0.2))


def repetition(text: str, language: str) -> float:
    """The share of the words of ``text`` (Mandarin: its characters) that lie in a loop, the first turn not counted.

    Between 0 and 1; 0 where there are too few words to tell. A loop is any run of up to ``LONGEST_LOOP`` words that is
    followed by itself; the one that covers most counts.
    """
    words = list("".join(text.split())) if language == "zh" else text.casefold().split()
    if len(words) < _FEWEST:
        return 0.0
    worst = 0
    for period in range(1, min(LONGEST_LOOP, len(words) // 2) + 1):
        run = 0
        for n in range(period, len(words)):
            run = run + 1 if words[n] == words[n - period] else 0
            worst = max(worst, run if run >= period else 0)
    return worst / len(words)
