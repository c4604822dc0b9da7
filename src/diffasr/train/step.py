"""One batch in, three losses out."""

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.corrupt import corrupt, draw_times
from diffasr.diffusion.loss import ar_loss, candidate_labels, ctc_loss, diffusion_loss
from diffasr.model.network import Cache, Network, Speech
from diffasr.text import Tokenizer
from diffasr.train.data import Batch
from diffasr.train.stages import Stage


def losses(
    network: Network, batch: Batch, stage: Stage, *, tokenizer: Tokenizer, generator: torch.Generator
) -> dict[str, Tensor]:
    """The mean of each loss that ``stage`` gives a weight, in nats, by its name in Stage."""
    speech = dropped(blank_spans(batch.speech, stage.mask, generator), stage.dropout, generator)
    out = {}
    if stage.ctc > 0:
        labels, places, weight = candidate_labels(
            batch.pieces, blank=tokenizer.blank, vocabulary=len(tokenizer.alphabet), extra=stage.ctc_extra,
            generator=generator,
        )  # fmt: skip
        logits = network.ctc_logits(speech, labels) + weight
        slots = network.slots(speech)
        out["ctc"] = ctc_loss(logits, slots, places, batch.piece_lengths, blank=0).mean()
    if stage.diffusion == 0 and stage.ar == 0:
        return out
    cache = network.prefill(speech, batch.languages)
    if stage.ar > 0:
        out["ar"] = _ar(network, batch, cache, stage.ar_share, tokenizer.end, generator)
    if stage.diffusion > 0:
        out["diffusion"] = _diffusion(network, batch, cache, stage, tokenizer, generator)
    return out


def _ar(network: Network, batch: Batch, cache: Cache, share: float, end: int, generator: torch.Generator) -> Tensor:
    count = max(1, round(share * len(batch.tokens)))
    rows = torch.randperm(len(batch.tokens), generator=generator)[:count]
    lengths = batch.lengths[rows]
    tokens = batch.tokens[rows, : int(lengths.max())]  # (R, U)
    logits = network.ar_logits(tokens, network.select(cache, rows))  # (R, U + 1, V)
    targets = torch.nn.functional.pad(tokens, (0, 1), value=end)
    return ar_loss(logits, targets, lengths + 1).mean()


def _diffusion(
    network: Network, batch: Batch, cache: Cache, stage: Stage, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    vocabulary, end = tokenizer.size, tokenizer.end
    slack = int(torch.randint(stage.slack + 1, (), generator=generator))
    size = ctc.canvas_length(int(batch.lengths.max()), slack=slack)
    rows = len(batch.tokens)
    clean = torch.full((rows, size), end)
    width = min(size, batch.tokens.shape[1])
    clean[:, :width] = batch.tokens[:, :width]
    lengths = torch.full((rows,), size)

    blurred = ctc.blurred(cache.ctc.detach().float(), most=stage.blur, generator=generator)
    paths = ctc.heard(blurred, cache.slots, blank=tokenizer.blank, joined=tokenizer.joined)
    seeds = torch.randint(vocabulary, (rows, size), generator=generator)
    hints = torch.full((rows, size), -1)
    for row, path in enumerate(paths):
        count = min(size, int(batch.lengths[row]))
        heard, slots = ctc.fitted(path, clean[row, :count].tolist(), fill=seeds[row].tolist())
        seeds[row] = torch.tensor(heard + [end] * (size - count))
        hints[row, :count] = torch.tensor(slots)
    hints[torch.rand(rows, generator=generator) < stage.hint_drop] = -1

    is_draft = torch.rand(rows, generator=generator) < stage.draft_share
    start = torch.where(is_draft[:, None], seeds, clean)
    t = draw_times(rows, full_share=stage.full_share, generator=generator)
    t = torch.where(is_draft, stage.draft_noise * torch.rand(rows, generator=generator), t)
    noisy, _ = corrupt(start, t, vocabulary=vocabulary, generator=generator)

    previous = None
    if float(torch.rand((), generator=generator)) < stage.conditioned_share:
        with torch.no_grad():
            previous = network.denoise(noisy, cache, lengths=lengths, hints=hints)
        unrolled = torch.rand(rows, generator=generator) < stage.unroll_share
        noisy = torch.where(unrolled[:, None], previous.argmax(-1), noisy)
    logits = network.denoise(noisy, cache, lengths=lengths, previous=previous, hints=hints)
    return diffusion_loss(logits, clean, lengths).mean()


def dropped(speech: Speech, share: float, generator: torch.Generator) -> Speech:
    """``share`` of the numbers in the frames set to 0, the others as much larger."""
    if share == 0:
        return speech
    keep = torch.rand(speech.frames.shape, generator=generator) >= share
    return Speech(frames=speech.frames * keep / (1 - share), lengths=speech.lengths)


def blank_spans(speech: Speech, share: float, generator: torch.Generator, *, longest: int = 20) -> Speech:
    """Zero one span of up to ``longest`` frames for every three seconds, in ``share`` of the rows.

    Source: arXiv:1904.08779 section 2, time masking, here on encoder frames (B, T, S).
    """
    if share == 0:
        return speech
    rows, size = speech.frames.shape[:2]
    keep = torch.ones(rows, size, dtype=torch.bool)
    for row in (torch.rand(rows, generator=generator) < share).nonzero()[:, 0].tolist():
        length = int(speech.lengths[row])
        for _ in range(1 + length // 150):
            span = int(torch.randint(1, longest + 1, (), generator=generator))
            first = int(torch.randint(max(1, length - span), (), generator=generator))
            keep[row, first : first + span] = False
    return Speech(frames=speech.frames * keep[:, :, None], lengths=speech.lengths)
