"""One batch of windows in, their texts out: CTC, canvas, sampler.

CTC says what it heard, how much canvas that needs and where each token was; then the denoiser writes the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffasr.asking import Asking
from diffasr.ballots import alternatives, ballot_paths
from diffasr.comparisons import joint_rows
from diffasr.confidence import judged
from diffasr.diffusion import ctc, vote
from diffasr.diffusion.corrupt import corrupt
from diffasr.diffusion.joint import Ahead, Opinion, opinions
from diffasr.diffusion.sampler import Draft, Renew, SamplingOptions, Step, closed, fresh_rows, sample
from diffasr.errors import OptionError
from diffasr.hotwords import Hotwords, favoured
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache, Speech
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.transcript import Alternative
from diffasr.words import HeardWord, place_words

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
    """Of each token when it was accepted, in nats."""
    alternatives: tuple[Alternative, ...] = ()
    """See Segment."""
    is_whole: bool = True
    """Whether it ended inside of the largest canvas."""


@torch.inference_mode()
def decode(
    model: Model,
    speech: Speech,
    languages: Tensor | None,
    options: SamplingOptions,
    show: Show | None = None,
    guide: Guide | None = None,
) -> list[Decoded]:
    """Write the text of each row of ``speech``.

    languages: (B,) indices into LANGUAGES, -1 where the model must find out; None: it must for all. A row whose text
    does not end inside its canvas is written again on the next larger one. A row in which CTC hears nothing is empty.
    """
    options = _resolved(model, options)
    cache = model.network.prefill(speech, None if languages is None else languages.to(speech.frames.device))
    if guide is not None and guide.context:
        cache = model.network.remember(cache, model.tokenizer.encode(guide.context))
    votes, rows = options.votes, len(cache.slots)
    if votes > 1:  # one prefill, several canvases
        again = torch.arange(rows, device=cache.audio.device).repeat_interleave(votes)
        cache = model.network.select(cache, again)
        show = None if show is None else _first_of(votes, show)
    paths = ballot_paths(model, cache, options, None if guide is None else guide.hotwords)
    written = _write(model, cache, paths, options, show)
    elected = [_elected(written[n : n + votes], options) for n in range(0, rows * votes, votes)]
    return [
        replace(d, words=_placed(model, cache.ctc[n, : int(cache.slots[n])], d, written[n : n + votes]))
        for n, d in zip(range(0, rows * votes, votes), elected, strict=True)
    ]


def _placed(model: Model, logits: Tensor, chosen: Decoded, ballots: Sequence[Decoded]) -> tuple[HeardWord, ...]:
    words = place_words(model.tokenizer, logits, chosen.text, chosen.language, ballots=ballots)
    return judged(words, model.config.calibration)


def _first_of(votes: int, show: Show) -> Show:
    """Shows the first canvas of each window only."""

    def shown(draft: Draft, rows: list[int]) -> None:
        chosen = [place for place, row in enumerate(rows) if row % votes == 0]
        parts = {name: value if name == "step" else value[chosen] for name, value in vars(draft).items()}
        show(Draft(**parts), [rows[place] // votes for place in chosen])

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
    model: Model, cache: Cache, paths: Sequence[ctc.Path], options: SamplingOptions, show: Show | None
) -> list[Decoded]:
    """One text for each row of ``cache``, from what CTC heard there."""
    lengths = torch.tensor([ctc.canvas_length(len(path.tokens)) for path in paths])
    done: list[Decoded | None] = [None] * len(paths)
    rows = torch.tensor([row for row, path in enumerate(paths) if path.tokens], dtype=torch.long)
    for row, path in enumerate(paths):
        if not path.tokens:
            done[row] = _decoded(model, cache, row)
    steps = [0] * len(paths)
    while len(rows):
        chosen = rows.tolist()
        finished = [False] * len(chosen)
        wanted = cache if len(rows) == len(paths) else model.network.select(cache, rows.to(cache.audio.device))
        seeds = [options.seed + row % options.votes for row in chosen]
        heard = [paths[row] for row in chosen]
        for draft in denoise_steps(model, wanted, heard, lengths[rows], options, seeds=seeds):
            if show is not None:
                show(draft, chosen)
            for row, is_finished in zip(chosen, finished, strict=True):
                steps[row] += not is_finished
            finished = draft.finished.tolist()
        overflow = []
        for place, row in enumerate(chosen):
            length = int(lengths[row])
            ended = bool((draft.tokens[place, :length] == model.tokenizer.end).any())
            if ended or length == ctc.BUCKETS[-1]:
                text = _decoded(
                    model, cache, row, steps[row], draft.tokens[place, :length], draft.log_probability[place]
                )
                done[row] = replace(text, is_whole=ended)
            else:
                lengths[row] = next(b for b in ctc.BUCKETS if b > length)
                overflow.append(row)
        rows = torch.tensor(overflow, dtype=torch.long)
    return [d for d in done if d is not None]


def denoise_steps(
    model: Model,
    cache: Cache,
    paths: Sequence[ctc.Path],
    lengths: Tensor,
    options: SamplingOptions,
    *,
    seeds: Sequence[int],
) -> Iterator[Draft]:
    """Start a canvas for each row of ``cache`` as ``options`` and its seed say, and yield the sampler's drafts.

    seeds: of each row, for the canvas and for all that is drawn later; those of several votes on a window differ.
    """
    size, vocabulary = int(lengths.max()), model.tokenizer.size
    dice = [torch.Generator().manual_seed(seed + 1) for seed in seeds]  # a die a row, as in the sampler
    if options.start == "noise":
        canvas = fresh_rows(lengths.tolist(), size, dice, vocabulary=vocabulary)
    else:
        canvas = ctc.seed_canvas(paths, lengths, end=model.tokenizer.end)
        share = torch.tensor([options.seed_noise])
        for row, (used, die) in enumerate(zip(lengths.tolist(), dice, strict=True)):
            canvas[row, :used] = corrupt(canvas[row : row + 1, :used], share, vocabulary=vocabulary, generator=die)[0]
    end, hints = model.tokenizer.end, ctc.hint_slots(paths, size).to(cache.audio.device)
    ask = Asking(model, cache, lengths, options)

    def denoise(noisy: Tensor, previous: Tensor | None, rows: Tensor) -> Tensor:
        return favoured(ask(noisy, previous, rows, hints), noisy, [paths[n] for n in rows.tolist()], model.tokenizer)

    drafts = [_Rest(path.tokens, path.slots) for path in paths]

    def renew(step: Step) -> Tensor:
        """Go on with what CTC heard behind the accepted text, and move the hints along."""
        fresh, moved = closed(step.drawn, end), hints.cpu()
        for place, row in enumerate(step.rows.tolist()):
            count, size = int(step.accepted[place].sum()), int(lengths[row])
            written = step.drawn[place, :count].tolist()
            if count < size and end not in written:
                fresh[place], moved[row] = drafts[row].behind(written, canvas.shape[1], model.tokenizer)
        hints.copy_(moved)
        return fresh

    renewed: Renew | None = None
    match options.accept:
        case "joint":
            hints.fill_(-1)  # they would have to move with every word
            renewed = _joint(model, cache, lengths, options, ask, [not path.favoured for path in paths])
        case "prefix" if options.start != "noise":
            renewed = renew
    yield from sample(denoise, canvas, lengths, options, end=end, renew=renewed, seeds=seeds, believe=ask.beliefs)


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


def _joint(
    model: Model, cache: Cache, lengths: Tensor, options: SamplingOptions, ask: Asking, drafts: Sequence[bool]
) -> Renew:
    """CTC and the denoiser write each row's canvas together; what CTC knows of the row is kept from step to step.

    drafts: which rows may ask the drafter, who favours no word.
    """
    rows = joint_rows(model, cache, options)
    if options.draft and not ask.drafts:
        raise OptionError(
            f"draft={options.draft} needs a drafter, and a CPU: {model.config.name} has none here, leave it 0"
        )

    def told(row: int, place: int, tokens: Sequence[int], own: int) -> Opinion:
        return opinions(ask.ahead(row, place, tokens), [own])[0]

    most = options.drafted if ask.drafts else 0
    ahead = [Ahead(most=most, told=partial(told, row)) if most and drafts[row] else None for row in range(len(rows))]

    def renew(step: Step) -> Tensor:
        fresh = torch.full_like(step.canvas, model.tokenizer.end)
        for place, row in enumerate(step.rows.tolist()):
            size = int(lengths[row])
            canvas, logits, total = (part[place, :size] for part in (step.canvas, step.logits, step.total))
            fresh[place, :size] = rows[row].rewritten(canvas, logits, ahead[row], total)
        return fresh

    return renew


@dataclass
class _Rest:
    """CTC's text of one row while the denoiser works through it."""

    tokens: list[int]
    slots: list[int]

    def behind(self, written: list[int], size: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """A canvas (L,) and hints (L,): ``written``, then the tokens that it has not used up."""
        used = ctc.consumed(tokenizer.spell(written), [tokenizer.spell([token]) for token in self.tokens])
        rest, slots = self.tokens[used:][: size - len(written)], self.slots[used:][: size - len(written)]
        canvas, hints = torch.full((size,), tokenizer.end), torch.full((size,), -1)
        canvas[: len(written) + len(rest)] = torch.tensor(written + rest)
        _, starts = ctc.fitted(ctc.Path(self.tokens[:used], self.slots[:used], 0.0), written, fill=written)
        hints[: len(written) + len(slots)] = torch.tensor(starts + slots)
        return canvas, hints


def _decoded(
    model: Model,
    cache: Cache,
    row: int,
    steps: int = 0,
    tokens: Tensor | None = None,
    log_probability: Tensor | None = None,
) -> Decoded:
    """One row as text; without tokens it is empty."""
    index, text, score = int(cache.languages[row]), "", 0.0
    ids: list[int] = []
    sure: list[float] = []
    if tokens is not None and log_probability is not None:
        ids = tokens.tolist()
        written = ids.index(model.tokenizer.end) + 1 if model.tokenizer.end in ids else len(ids)
        text = model.tokenizer.decode(ids)
        score = min(0.0, float(log_probability[:written].mean()))
        size = written - (model.tokenizer.end in ids)
        ids, sure = ids[:size], log_probability[:size].tolist()
    return Decoded(
        text=text,
        language=list(LANGUAGES)[index],
        language_probability=float(cache.language_logits[row].float().softmax(0)[index]),
        avg_logprob=score,
        steps=steps,
        tokens=tuple(ids),
        token_logprobs=tuple(sure),
    )
