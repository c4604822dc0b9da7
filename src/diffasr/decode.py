"""One batch of windows in, their texts out: CTC, canvas, sampler.

CTC says what it heard, how much canvas that needs and where each token was; then the denoiser writes the text. Where it
does so together with CTC, torch is not needed here; ``canvases`` has the other ways.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffasr.ballots import alternatives, ballot_paths, generator_of, guidance, joint_rows
from diffasr.confidence import judged
from diffasr.decodable import Heard, decodable
from diffasr.diffusion import ctc, together, vote
from diffasr.diffusion.joint import Ahead, Joint
from diffasr.diffusion.options import AHEAD, SamplingOptions
from diffasr.errors import OptionError
from diffasr.hotwords import Favouring, Hotwords
from diffasr.model.loaded import Model
from diffasr.places import Opinion, Place, Reader
from diffasr.text import LANGUAGES
from diffasr.transcript import Alternative
from diffasr.words import HeardWord, place_words

if TYPE_CHECKING:
    from diffasr.diffusion import sampler

Draft: TypeAlias = "together.Draft | sampler.Draft"
"""Canvases after a step: as arrays, or as tensors on the CPU."""
Show = Callable[[Draft, list[int]], None]
"""Called with a draft and the rows of the batch that it holds."""


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What is known of the windows before they are decoded."""

    hotwords: Hotwords | None = None
    context: str = ""
    """What was said before them."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What one window says."""

    text: str
    language: str
    language_probability: float
    avg_logprob: float
    steps: int
    words: tuple[HeardWord, ...] = ()
    tokens: tuple[int, ...] = ()
    """As the denoiser wrote them, without the end; of several votes those of the first."""
    token_logprobs: tuple[float, ...] = ()
    """Of each token when it was accepted, or when the text was read, in nats."""
    alternatives: tuple[Alternative, ...] = ()
    """See Segment."""
    is_whole: bool = True
    """Whether it ended inside of the largest canvas."""


def decode(
    model: Model,
    speech: Any,
    languages: Sequence[int] | None,
    options: SamplingOptions,
    show: Show | None = None,
    guide: Guide | None = None,
) -> list[Decoded]:
    """Write the text of each row of ``speech``, which is what the model's network heard.

    languages: (B,) indices into LANGUAGES, -1 where the model must find out; None: it must for all. A row whose text
    does not end inside its canvas is written again on the next larger one. A row in which CTC hears nothing is empty.
    """
    options = _resolved(model, options)
    with decodable(model.network).inference_mode():
        parts = decodable(model.network).parts(speech)
        starts = [0, *accumulate(map(len, parts))]

        def decoded(part: Any, first: int, behind: int) -> list[Decoded]:
            known = None if languages is None else languages[first:behind]
            return _decode(model, part, known, options, None if show is None else _from(first, show), guide)

        work = parts, starts[:-1], starts[1:]
        if show is not None or len(parts) == 1 or decodable(model.network).hands == 1:
            return [row for rows in map(decoded, *work) for row in rows]
        with ThreadPoolExecutor(decodable(model.network).hands) as pool:
            return [row for rows in pool.map(decoded, *work) for row in rows]


def _from(first: int, show: Show) -> Show:
    """Shows rows under numbers that begin with ``first``."""
    return lambda draft, rows: show(draft, [first + row for row in rows])


def _decode(
    model: Model,
    speech: Any,
    languages: Sequence[int] | None,
    options: SamplingOptions,
    show: Show | None,
    guide: Guide | None,
) -> list[Decoded]:
    """The same of rows that are decoded together."""
    cache = decodable(model.network).prefill(speech, languages)
    if guide is not None and guide.context:
        cache = decodable(model.network).remember(cache, model.tokenizer.encode(guide.context))
    votes, rows = options.votes, len(cache)
    if votes > 1:  # one prefill, several canvases
        cache = decodable(model.network).select(cache, [row for row in range(rows) for _ in range(votes)])
        show = None if show is None else _first_of(votes, show)
    paths = ballot_paths(model, cache, options, None if guide is None else guide.hotwords)
    written = _write(model, cache, paths, options, show)
    elected = [_elected(written[n : n + votes], options) for n in range(0, rows * votes, votes)]
    return [
        replace(d, words=_placed(model, cache.labels(n), d, written[n : n + votes]))
        for n, d in zip(range(0, rows * votes, votes), elected, strict=True)
    ]


def _placed(
    model: Model, logits: NDArray[np.float32], chosen: Decoded, ballots: Sequence[Decoded]
) -> tuple[HeardWord, ...]:
    words = place_words(model.tokenizer, logits, chosen.text, chosen.language, ballots=ballots)
    return judged(words, model.config.calibration)


def _first_of(votes: int, show: Show) -> Show:
    """Shows the first canvas of each window only."""

    def shown(draft: Draft, rows: list[int]) -> None:
        chosen = [place for place, row in enumerate(rows) if row % votes == 0]
        parts = {name: value if name == "step" else value[chosen] for name, value in vars(draft).items()}
        show(replace(draft, **parts), [rows[place] // votes for place in chosen])

    return shown


def _elected(ballots: Sequence[Decoded], options: SamplingOptions) -> Decoded:
    """Several texts of one window merged; Mandarin by characters."""
    first = ballots[0]
    space = "" if first.language == "zh" else " "
    spoken = [list(b.text) if space == "" else b.text.split() for b in ballots]
    others = alternatives(ballots, spoken, options.alternatives) if options.alternatives else ()
    if len(ballots) == 1:
        return replace(first, alternatives=others)
    steps = max(b.steps for b in ballots)
    if options.merge == "mbr":
        return replace(ballots[vote.least_risk(spoken)], steps=steps, alternatives=others)
    return replace(
        first,
        text=space.join(vote.elect(spoken).words),
        avg_logprob=sum(b.avg_logprob for b in ballots) / len(ballots),
        steps=steps,
        alternatives=others,
    )


def _write(
    model: Model, cache: Heard, paths: Sequence[ctc.Path], options: SamplingOptions, show: Show | None
) -> list[Decoded]:
    """One text for each row of ``cache``, from what CTC heard there."""
    lengths = [ctc.canvas_length(len(path.tokens)) for path in paths]
    done = [None if path.tokens else _decoded(model, cache, row) for row, path in enumerate(paths)]
    rows = [row for row, path in enumerate(paths) if path.tokens]
    steps = [0] * len(paths)
    while rows:
        finished = [False] * len(rows)
        wanted = cache if len(rows) == len(paths) else decodable(model.network).select(cache, rows)
        canvases = Canvases(
            [paths[row] for row in rows],
            [lengths[row] for row in rows],
            [options.seed + row % options.votes for row in rows],
        )
        for draft in drafts(model, wanted, canvases, options):
            if show is not None:
                show(draft, rows)
            for row, is_finished in zip(rows, finished, strict=True):
                steps[row] += not is_finished
            finished = draft.finished.tolist()
        overflow = []
        for place, row in enumerate(rows):
            tokens = draft.tokens[place, : lengths[row]].tolist()
            ended = model.tokenizer.end in tokens
            if ended or lengths[row] == ctc.BUCKETS[-1]:
                text = _decoded(model, cache, row, steps[row], tokens, draft.log_probability[place].tolist())
                done[row] = replace(text, is_whole=ended)
            else:
                lengths[row] = next(b for b in ctc.BUCKETS if b > lengths[row])
                overflow.append(row)
        rows = overflow
    return [d for d in done if d is not None]


@dataclass(frozen=True)
class Canvases:
    """What the rows of a batch start from."""

    paths: Sequence[ctc.Path]
    lengths: Sequence[int]
    """Places of each."""
    seeds: Sequence[int]
    """Of each, for the canvas and for all that is drawn later; those of several votes on a window differ."""


def drafts(model: Model, cache: Heard, canvases: Canvases, options: SamplingOptions) -> Iterator[Draft]:
    """Denoise a canvas for each row of ``cache`` as ``options`` say, without ``auto``, and yield a draft a step."""
    if options.accept == "joint":
        yield from _together(model, cache, canvases, options)
        return
    from diffasr.canvases import denoise_steps

    yield from denoise_steps(model, cache, canvases, options)


def _together(model: Model, cache: Heard, canvases: Canvases, options: SamplingOptions) -> Iterator[Draft]:
    """CTC and the denoiser write each row's canvas together; what CTC knows of the row is kept from step to step."""
    paths = canvases.paths
    weights = guidance(model, cache, options)
    reader: Reader = decodable(model.network).reader(
        cache, canvases.lengths, weights, end=model.tokenizer.end, shows_beliefs=options.self_conditioning
    )
    if options.ahead and not reader.looks_ahead:
        raise OptionError(f"{model.config.name} is read in whole canvases here: ahead={options.ahead} can only be 0")
    favouring = Favouring(reader, paths, model.tokenizer)
    most = (AHEAD if options.ahead is None else options.ahead) if reader.looks_ahead else 0

    def told(row: int, text: Sequence[int], place: int, tokens: Sequence[int], resumes: int) -> Opinion:
        said = favouring.raised(row, text, resumes, reader.ahead(row, place, tokens))
        return said.opinion([*text, model.tokenizer.end][resumes])

    def rewritten(row: int, joint: Joint, tokens: Sequence[int], places: Sequence[Place]) -> list[int]:
        ahead = Ahead(most=most, told=partial(told, row, tokens)) if most else None
        return joint.rewritten(tokens, places, ahead)

    yield from together.write(
        favouring,
        [
            together.Writer(partial(rewritten, row, joint), joint.worth if most else None)
            for row, joint in enumerate(joint_rows(model, cache, options))
        ],
        [_seeded(model, *row, options.seed_noise) for row in zip(paths, canvases.lengths, canvases.seeds, strict=True)],
        canvases.lengths,
        steps=options.steps,
        end=model.tokenizer.end,
    )


def _seeded(model: Model, path: ctc.Path, size: int, seed: int, share: float) -> list[int]:
    """CTC's text, in whose canvas a ``share`` of the places is replaced by random tokens."""
    end, dice = model.tokenizer.end, generator_of(seed, 0, 1)
    canvas = [*path.tokens, *[end] * size][:size]
    is_noise = dice.random(size) < share
    canvas = np.where(is_noise, dice.integers(model.tokenizer.size, size=size), canvas).tolist()
    return canvas[: canvas.index(end)] if end in canvas else canvas


def _resolved(model: Model, options: SamplingOptions) -> SamplingOptions:
    """``options`` without ``auto``; raises OptionError for joint writing where it can't be."""
    spells = model.tokenizer.spelling is not None
    if options.accept == "joint" and not spells:
        raise OptionError(f"accept='joint' needs CTC with short labels, which {model.config.name} has not: use prefix")
    chance = max(options.temperature, options.final_temperature) > 0
    if options.accept == "joint" and (chance or options.ctc_weight > 0):
        raise OptionError("accept='joint' asks CTC anyway and takes the likeliest: leave temperatures and ctc_weight 0")
    if options.accept == "joint" and options.start == "noise":
        raise OptionError("accept='joint' writes CTC's text anew: it can't start from noise")
    if options.accept != "auto":
        return options
    is_plain = options.start != "noise" and not chance and options.ctc_weight == 0
    return replace(options, accept="joint" if spells and is_plain else "prefix")


def _decoded(
    model: Model,
    cache: Heard,
    row: int,
    steps: int = 0,
    tokens: Sequence[int] = (),
    log_probabilities: Sequence[float] = (),
) -> Decoded:
    """One row as text; without tokens it is empty."""
    index, end = int(cache.languages[row]), model.tokenizer.end
    size = tokens.index(end) if end in tokens else len(tokens)
    scored = log_probabilities[: size + (size < len(tokens))]
    return Decoded(
        text=model.tokenizer.decode(tokens),
        language=list(LANGUAGES)[index],
        language_probability=_share(cache.language_logits[row].tolist(), index),
        avg_logprob=min(0.0, sum(scored) / max(1, len(scored))),
        steps=steps,
        tokens=tuple(tokens[:size]),
        token_logprobs=tuple(log_probabilities[:size]),
    )


def _share(logits: Sequence[float], index: int) -> float:
    """The probability of one of them."""
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    return weights[index] / sum(weights)
