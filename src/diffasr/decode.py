"""One batch of windows in, their texts out: CTC, canvas, sampler.

CTC says what it heard, how much canvas that needs and where each token was; then the denoiser writes the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffasr.confidence import judged
from diffasr.diffusion import ctc, vote
from diffasr.diffusion.corrupt import corrupt
from diffasr.diffusion.sampler import Draft, SamplingOptions, closed, fresh_rows, sample
from diffasr.hotwords import Hotwords, favoured, put_in
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache, Speech
from diffasr.text import LANGUAGES, Tokenizer
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


def ctc_texts(model: Model, speech: Speech) -> list[str]:
    """CTC's best path of each row as text, without any denoising."""
    tokenizer = model.tokenizer
    logits = model.network.ctc_logits(speech)
    paths = ctc.best_paths(logits, model.network.slots(speech), blank=tokenizer.blank)
    return [tokenizer.decode(tokenizer.alphabet[label] for label in path.tokens) for path in paths]


@torch.inference_mode()
def ar_texts(model: Model, speech: Speech, languages: Tensor | None, *, most: int = 160) -> list[str]:
    """Each row written token by token with the causal mask on, greedily, at most ``most`` tokens: the comparison.

    Keys and values of the text so far are kept.
    """
    device = speech.frames.device
    cache = model.network.prefill(speech, None if languages is None else languages.to(device))
    tokens = torch.empty(len(cache.slots), 0, dtype=torch.long, device=device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    read, new = model.network.ar_reader(cache), tokens
    while tokens.shape[1] < most and not bool(ended.all()):
        best = read(new).argmax(-1)  # (B,)
        best = torch.where(ended, model.tokenizer.end, best)
        new = best[:, None]
        tokens = torch.cat((tokens, new), dim=1)
        ended |= best == model.tokenizer.end
    return [model.tokenizer.decode(row) for row in tokens.tolist()]


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
    cache = model.network.prefill(speech, None if languages is None else languages.to(speech.frames.device))
    if guide is not None and guide.context:
        cache = model.network.remember(cache, model.tokenizer.encode(guide.context))
    votes, rows = options.votes, len(cache.slots)
    if votes > 1:  # one prefill, several canvases
        again = torch.arange(rows, device=cache.audio.device).repeat_interleave(votes)
        cache = model.network.select(cache, again)
        show = None if show is None else _first_of(votes, show)
    paths = _ballot_paths(model, cache, votes, options.seed, None if guide is None else guide.hotwords)
    written = _write(model, cache, paths, options, show)
    elected = [_elected(written[n : n + votes]) for n in range(0, rows * votes, votes)]
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


def _ballot_paths(model: Model, cache: Cache, votes: int, seed: int, hotwords: Hotwords | None) -> list[ctc.Path]:
    """What CTC heard in each row; every ``votes``-th row takes the best path, the others a sample of the posterior."""
    tokenizer, paths, codes = model.tokenizer, [], list(LANGUAGES)
    mended: Callable[[ctc.Path], ctc.Path] | None = None
    for row, slots in enumerate(cache.slots.tolist()):
        logits = cache.ctc[row : row + 1, :slots]  # (1, N, C): no draw depends on a neighbour's length
        if hotwords is not None:
            language = codes[int(cache.languages[row])]
            mended = partial(put_in, logits=logits[0], tokenizer=tokenizer, hotwords=hotwords, language=language)
        if row % votes:
            dice = torch.Generator().manual_seed(seed * 10_007 + row % votes)
            logits = ctc.blurred(logits.float().cpu(), most=1.0, generator=dice)
        real = cache.slots[row : row + 1]
        paths += ctc.heard(logits, real, blank=tokenizer.blank, joined=tokenizer.joined, mended=mended)
    return paths


def _elected(ballots: Sequence[Decoded]) -> Decoded:
    """Several texts of one window merged; Mandarin by characters."""
    first = ballots[0]
    if len(ballots) == 1:
        return first
    space = "" if first.language == "zh" else " "
    election = vote.elect([list(b.text) if space == "" else b.text.split() for b in ballots])
    return replace(
        first,
        text=space.join(election.words),
        avg_logprob=sum(b.avg_logprob for b in ballots) / len(ballots),
        steps=max(b.steps for b in ballots),
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
        wanted = model.network.select(cache, rows.to(cache.audio.device))
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
                done[row] = _decoded(
                    model, cache, row, steps[row], draft.tokens[place, :length], draft.log_probability[place]
                )
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
    """Start a canvas for each row of ``cache`` as ``options`` and its seed say, and yield the sampler's drafts."""
    network, size, vocabulary = model.network, int(lengths.max()), model.tokenizer.size
    dice = [torch.Generator().manual_seed(seed + 1) for seed in seeds]  # a die a row, as in the sampler
    if options.start == "noise":
        canvas = fresh_rows(lengths.tolist(), size, dice, vocabulary=vocabulary)
    else:
        canvas = ctc.seed_canvas(paths, lengths, end=model.tokenizer.end)
        share = torch.tensor([options.seed_noise])
        for row, (used, die) in enumerate(zip(lengths.tolist(), dice, strict=True)):
            canvas[row, :used] = corrupt(canvas[row : row + 1, :used], share, vocabulary=vocabulary, generator=die)[0]
    end, device = model.tokenizer.end, cache.audio.device
    hints, used_places = ctc.hint_slots(paths, size).to(device), lengths.to(device)
    openings = torch.tensor(model.tokenizer.openings if options.ctc_weight > 0 else (), device=device)

    def denoise(noisy: Tensor, previous: Tensor | None) -> Tensor:
        """The sampler stays on the CPU, with its dice; only the network's work is elsewhere."""
        belief = None if previous is None else previous.to(device)
        logits = network.denoise(noisy.to(device), cache, lengths=used_places, previous=belief, hints=hints)
        if options.ctc_weight > 0:
            rows = torch.arange(len(hints), device=device)[:, None]
            heard = cache.ctc[rows, hints.clamp_min(0)].log_softmax(-1)[:, :, openings]  # (B, L, V)
            logits = logits.log_softmax(-1) + options.ctc_weight * heard * (hints >= 0)[:, :, None]
        return favoured(logits.cpu(), noisy, paths, model.tokenizer)

    drafts = [_Rest(list(path.tokens), path.slots) for path in paths]

    def renew(drawn: Tensor, probability: Tensor, accepted: Tensor) -> Tensor:
        """Go on with what CTC heard behind the accepted text, as far as the model agrees, and move the hints along."""
        fresh, moved = closed(drawn, end), hints.cpu()
        for row, rest in enumerate(drafts):
            count, size = int(accepted[row].sum()), int(lengths[row])
            written = drawn[row, :count].tolist()
            if count < size and end not in written:
                rest.correct(drawn[row], probability[row] > options.confidence, count, end=end)
                fresh[row], moved[row] = rest.behind(written, canvas.shape[1], model.tokenizer)
        hints.copy_(moved)
        return fresh

    yield from sample(
        denoise, canvas, lengths, options, end=end,
        renew=renew if options.accept == "prefix" and options.start == "ctc" else None,
    )  # fmt: skip


@dataclass
class _Rest:
    """CTC's text of one row while the denoiser works through it."""

    tokens: list[int]
    slots: list[int]
    shift: int = 0
    """From a place of the canvas to its token, behind what was accepted."""

    def correct(self, drawn: Tensor, is_sure: Tensor, count: int, *, end: int) -> None:
        """Take over what the model says of places from ``count`` on, where it is sure."""
        for place in (is_sure & (drawn != end)).nonzero()[:, 0].tolist():
            if count <= place and 0 <= place + self.shift < len(self.tokens):
                self.tokens[place + self.shift] = int(drawn[place])

    def behind(self, written: list[int], size: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """A canvas (L,) and hints (L,): ``written``, then the tokens that it has not used up."""
        used = ctc.consumed(tokenizer.spell(written), [tokenizer.spell([token]) for token in self.tokens])
        self.shift = used - len(written)
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
