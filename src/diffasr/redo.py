"""A segment of which somebody put some words right in, the segment written anew around them out.

The old text is the first canvas. What was put right, or confirmed, stays where it is; the denoiser reads the whole with
the sound again and may change all else: replace, add and take out, up to the next kept word.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, Source, stream_blocks
from diffasr.ballots import joint_rows
from diffasr.confidence import judged
from diffasr.decodable import decodable
from diffasr.decode import Decoded, Draft
from diffasr.diffusion import ctc, together
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.pinned import Judge, Piece, Sheet
from diffasr.diffusion.sampler import sample
from diffasr.errors import OptionError
from diffasr.model.loaded import Model
from diffasr.text import LANGUAGES, Tokenizer, check_language
from diffasr.transcript import Segment, Transcript
from diffasr.words import place_words

Keep: TypeAlias = Mapping[tuple[int, int] | tuple[int, int, int], str]
"""(segment, word), or (segment, first word, last word), each from 0, to the text that stands there."""
_LEAST = -1e6  # nats


@dataclass(frozen=True)
class Fix:
    """Words of one segment, and what is right in their place."""

    first: int
    last: int
    text: str


def fixes(result: Transcript, keep: Keep) -> dict[int, list[Fix]]:
    """What to keep of each segment that is touched, in order; raises OptionError for what the transcript has not."""
    if not keep:
        raise OptionError("redo needs a word to keep, got none: keep={(segment, word): text}")
    found: dict[int, list[Fix]] = {}
    for place, text in keep.items():
        number, first, last = place[0], place[1], place[-1]
        if not 0 <= number < len(result.segments):
            raise OptionError(f"there is no segment {number}: the transcript has {len(result.segments)}, from 0")
        words = result.segments[number].words
        if not 0 <= first <= last < len(words):
            raise OptionError(f"segment {number} has no words {first} to {last}: it has {len(words)}, from 0")
        if not any(c.isalnum() for c in text):
            raise OptionError(f"what is kept needs a letter, got {text!r}; to take a word out, fix it with a neighbour")
        found.setdefault(number, []).append(Fix(first, last, " ".join(text.split())))
    for number, mine in found.items():
        segment = result.segments[number]
        check_language(segment.language)
        if segment.end - segment.start > WINDOW_SECONDS:
            raise OptionError(f"segment {number} is longer than a window, {WINDOW_SECONDS:g} s: transcribe it again")
        mine.sort(key=lambda fix: fix.first)
        for before, after in pairwise(mine):
            if after.first <= before.last:
                raise OptionError(f"word {after.first} of segment {number} is fixed twice: keep one of the two")
    return found


def cut_out(audio: Source, segments: Sequence[Segment]) -> list[Samples]:
    """The sound of each of ``segments``, in the order of time, in one reading; raises AudioError, OptionError."""
    spans = [(round(s.start * SAMPLE_RATE_HZ), round(s.end * SAMPLE_RATE_HZ)) for s in segments]
    parts: list[list[Samples]] = [[] for _ in spans]
    read = 0
    for block in stream_blocks(audio, max_seconds=None):
        for mine, (start, end) in zip(parts, spans, strict=True):
            mine.append(block[max(0, start - read) : max(0, end - read)].copy())
        read += len(block)
        if read >= spans[-1][1]:
            break
    if read + SAMPLE_RATE_HZ // 2 < spans[-1][1]:  # the last frame of a detector may reach a little further
        raise OptionError(
            f"the recording ends at {read / SAMPLE_RATE_HZ:.1f} s, before {segments[-1].end:.1f} s of the transcript: "
            "give the recording that was transcribed"
        )
    return [np.concatenate(mine) for mine in parts]


def pieces_of(segment: Segment, wanted: Sequence[Fix], tokenizer: Tokenizer) -> list[Piece]:
    """The segment's text as pieces with ``wanted`` put in: free and kept ones in turn, free ones at both ends."""
    is_spaced = segment.language != "zh"
    edges, place = [], 0
    for word in segment.words:
        start = segment.text.find(word.word, place)
        if start < 0:
            raise OptionError(
                f"the text {segment.text!r} does not hold its own word {word.word!r}: transcribe it again"
            )
        place = start + len(word.word)
        edges.append((start, place))
    pieces: list[Piece] = []
    done = 0
    for fix in wanted:
        between = segment.text[done : edges[fix.first][0]]
        for text, is_kept in ((between, False), (fix.text, True)):
            goes_on = (is_spaced or text[:1].isspace()) and any(piece.tokens for piece in pieces)
            pieces.append(Piece(tuple(tokenizer.encode(text, goes_on=goes_on)) if text.strip() else (), is_kept))
        done = edges[fix.last][1]
    rest = segment.text[done:]
    return [*pieces, Piece(tuple(tokenizer.encode(rest, goes_on=is_spaced)) if rest.strip() else (), False)]


@torch.inference_mode()
def rewrite(model: Model, speech: Any, language: str, pieces: Sequence[Piece], *, steps: int) -> Decoded:
    """The text of one window (B is 1) of which the kept ``pieces`` are known, in at most ``steps`` model calls.

    They are in it as they are, in order, as words of their own, and their probability is 1. Raises OptionError.
    """
    tokenizer, network = model.tokenizer, decodable(model.network)
    cache = network.prefill(speech, [list(LANGUAGES).index(language)])
    logits = cache.labels(0)
    sheet = Sheet(pieces, tokenizer, _judge(logits, tokenizer), is_spaced=language != "zh")
    drafts = _joint if tokenizer.spelling is not None else _sampled
    *_, draft = drafts(model, cache, sheet, steps)
    tokens = sheet.tokens()
    scores = draft.log_probability[0, : len(tokens)].tolist()
    sure = [0.0 if is_kept else score for is_kept, score in zip(sheet.kept(), scores, strict=True)]
    said = Decoded(
        text=" ".join(tokenizer.decode(tokens).split()),
        language=language,
        language_probability=1.0,
        avg_logprob=min(0.0, sum(sure) / max(1, len(sure))),
        steps=draft.step,
        tokens=tuple(tokens),
        token_logprobs=tuple(sure),
    )
    words = place_words(tokenizer, logits, said.text, language, ballots=[said])
    words = judged(words, model.config.calibration)
    kept = set(sheet.kept_words(language))
    sure_words = (replace(w, probability=1.0, confidence=1.0) if n in kept else w for n, w in enumerate(words))
    return replace(said, words=tuple(sure_words))


def _joint(model: Model, cache: Any, sheet: Sheet, steps: int) -> Iterator[Draft]:
    """The sheet, written by CTC and the denoiser together."""
    (joint,) = joint_rows(model, cache, SamplingOptions())
    end = model.tokenizer.end
    reader = decodable(model.network).reader(cache, [sheet.size], [0.0], end=end)
    return together.write(reader, [sheet.together(joint)], [sheet.tokens()], [sheet.size], steps=steps, end=end)


def _sampled(model: Model, cache: Any, sheet: Sheet, steps: int) -> Iterator[Draft]:
    """The sheet, changed by the denoiser from its first change on, step by step."""
    tokenizer, device = model.tokenizer, cache.device
    heard = ctc.in_tokens(ctc.best_path(cache.labels(0), blank=tokenizer.blank), tokenizer.joined)
    lengths = torch.tensor([sheet.size])

    def denoise(noisy: Tensor, _previous: Tensor | None, _rows: Tensor) -> Tensor:
        tokens = sheet.tokens()
        slots = ctc.fitted(heard, tokens, fill=tokens)[1]
        hints = torch.tensor([slots + [-1] * (sheet.size - len(slots))], device=device)
        told = decodable(model.network).denoise(noisy.to(device), cache, lengths=lengths.to(device), hints=hints)
        return sheet.narrowed(told.float().cpu())

    options = SamplingOptions(steps=steps, accept="prefix")
    return sample(denoise, sheet.canvas(), lengths, options, end=tokenizer.end, renew=sheet.renew)


def _judge(logits: NDArray[np.float32], tokenizer: Tokenizer) -> Judge:
    """What (N, C) CTC ``logits`` give a text, over all ways to say it; a finite number even where there is none."""
    scores = torch.from_numpy(ctc.log_softmax(logits))[:, None]  # (N, 1, C)

    def judge(text: str) -> float:
        labels = torch.tensor([tokenizer.pieces(text)])
        sizes = torch.tensor([len(scores)]), torch.tensor([labels.shape[1]])
        return max(_LEAST, -float(F.ctc_loss(scores, labels, *sizes, blank=tokenizer.blank, reduction="sum")))

    return judge
