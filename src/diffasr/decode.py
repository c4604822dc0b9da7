"""One batch of windows in, their texts out: CTC, canvas, sampler.

CTC says what it heard, how much canvas that needs and where each token was; then the denoiser writes the text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.corrupt import corrupt
from diffasr.diffusion.sampler import Draft, SamplingOptions, fresh_rows, sample
from diffasr.model.checkpoint import Model
from diffasr.model.network import Cache, Speech
from diffasr.text import LANGUAGES

Show = Callable[[Draft, list[int]], None]
"""Called with a draft and the rows of the batch that it holds."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What one window says."""

    text: str
    language: str
    language_probability: float
    avg_logprob: float
    steps: int


def ctc_texts(model: Model, speech: Speech) -> list[str]:
    """CTC's best path of each row as text, without any denoising."""
    logits = model.network.ctc_logits(speech)
    paths = ctc.best_paths(logits, model.network.slots(speech), blank=model.tokenizer.end)
    return [model.tokenizer.decode(path.tokens) for path in paths]


@torch.inference_mode()
def ar_texts(model: Model, speech: Speech, languages: Tensor | None, *, most: int = 160) -> list[str]:
    """Each row written token by token with the causal mask on, greedily, at most ``most`` tokens: the comparison.

    The text so far is read again at each token, so this costs more than a decoder made for it.
    """
    device = speech.frames.device
    cache = model.network.prefill(speech, None if languages is None else languages.to(device))
    tokens = torch.empty(len(cache.slots), 0, dtype=torch.long, device=device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    while tokens.shape[1] < most and not bool(ended.all()):
        best = model.network.ar_logits(tokens, cache)[:, -1].argmax(-1)  # (B,)
        best = torch.where(ended, model.tokenizer.end, best)
        tokens = torch.cat((tokens, best[:, None]), dim=1)
        ended |= best == model.tokenizer.end
    return [model.tokenizer.decode(row) for row in tokens.tolist()]


@torch.inference_mode()
def decode(
    model: Model,
    speech: Speech,
    languages: Tensor | None,
    options: SamplingOptions,
    show: Show | None = None,
) -> list[Decoded]:
    """Write the text of each row of ``speech``.

    languages: (B,) indices into LANGUAGES, -1 where the model must find out; None: it must for all. A row whose text
    does not end inside its canvas is written again on the next larger one. A row in which CTC hears nothing is empty.
    """
    cache = model.network.prefill(speech, None if languages is None else languages.to(speech.frames.device))
    paths = ctc.best_paths(cache.ctc, cache.slots, blank=model.tokenizer.end)
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
        for draft in denoise_steps(model, wanted, [paths[r] for r in chosen], lengths[rows], options):
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
    model: Model, cache: Cache, paths: Sequence[ctc.Path], lengths: Tensor, options: SamplingOptions
) -> Iterator[Draft]:
    """Start a canvas for each row of ``cache`` as ``options`` say, and yield the sampler's drafts."""
    network, size, vocabulary = model.network, int(lengths.max()), model.tokenizer.size
    dice = [torch.Generator().manual_seed(options.seed + 1) for _ in paths]  # a die a row, as in the sampler
    if options.start == "noise":
        canvas = fresh_rows(lengths.tolist(), size, dice, vocabulary=vocabulary)
    else:
        canvas = ctc.seed_canvas(paths, lengths, end=model.tokenizer.end)
        share = torch.tensor([options.seed_noise])
        for row, (used, die) in enumerate(zip(lengths.tolist(), dice, strict=True)):
            canvas[row, :used] = corrupt(canvas[row : row + 1, :used], share, vocabulary=vocabulary, generator=die)[0]
    end, device = model.tokenizer.end, cache.audio.device
    hints, used_places = ctc.hint_slots(paths, size).to(device), lengths.to(device)

    def denoise(noisy: Tensor, previous: Tensor | None) -> Tensor:
        """The sampler stays on the CPU, with its dice; only the network's work is elsewhere."""
        belief = None if previous is None else previous.to(device)
        logits = network.denoise(noisy.to(device), cache, lengths=used_places, previous=belief, hints=hints)
        if options.ctc_weight > 0:
            rows = torch.arange(len(hints), device=device)[:, None]
            heard = cache.ctc[rows, hints.clamp_min(0)].log_softmax(-1)  # (B, L, V)
            logits = logits.log_softmax(-1) + options.ctc_weight * heard * (hints >= 0)[:, :, None]
        return logits.cpu()

    def renew(chosen: Tensor, accepted: Tensor) -> Tensor:
        """Go on with what CTC heard behind the accepted text, and move the hints along."""
        fresh, places = _go_on(model, paths, lengths, chosen, accepted, hints.cpu())
        hints.copy_(places)
        return fresh

    yield from sample(
        denoise, canvas, lengths, options, end=end,
        renew=renew if options.accept == "prefix" and options.start == "ctc" else None,
    )  # fmt: skip


def _go_on(
    model: Model, paths: Sequence[ctc.Path], lengths: Tensor, chosen: Tensor, accepted: Tensor, hints: Tensor
) -> tuple[Tensor, Tensor]:
    """Canvases (B, L) and hints (B, L) that hold the accepted start of each row, then the rest of CTC's text."""
    canvas, size, spell = chosen.clone(), chosen.shape[1], model.tokenizer.spell
    for row, path in enumerate(paths):
        count = int(accepted[row].sum())
        written = chosen[row, :count].tolist()
        if count == int(lengths[row]) or model.tokenizer.end in written:
            continue
        used = ctc.consumed(spell(written), [spell([token]) for token in path.tokens])
        rest, slots = path.tokens[used:][: size - count], path.slots[used:][: size - count]
        canvas[row, count:] = model.tokenizer.end
        canvas[row, count : count + len(rest)] = torch.tensor(rest, dtype=canvas.dtype)
        _, starts = ctc.fitted(ctc.Path(path.tokens[:used], path.slots[:used], 0.0), written, fill=written)
        hints[row] = -1
        hints[row, :count] = torch.tensor(starts)
        hints[row, count : count + len(slots)] = torch.tensor(slots, dtype=hints.dtype)
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
    if tokens is not None and log_probability is not None:
        ids = tokens.tolist()
        written = ids.index(model.tokenizer.end) + 1 if model.tokenizer.end in ids else len(ids)
        text = model.tokenizer.decode(ids)
        score = min(0.0, float(log_probability[:written].mean()))
    return Decoded(
        text=text,
        language=list(LANGUAGES)[index],
        language_probability=float(cache.language_logits[row].float().softmax(0)[index]),
        avg_logprob=score,
        steps=steps,
    )
