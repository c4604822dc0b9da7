"""One batch in, three losses out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.corrupt import corrupt, draw_times
from diffasr.diffusion.loss import ar_loss, candidate_labels, ctc_loss, diffusion_loss, distil_loss
from diffasr.model.network import Cache, Network, Speech
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train.context import fitted_draft, padded, part, read_row
from diffasr.train.data import Batch
from diffasr.train.stages import Stage


def losses(
    network: Network,
    batch: Batch,
    stage: Stage,
    *,
    tokenizer: Tokenizer,
    generator: torch.Generator,
    teacher: Network | None = None,
) -> dict[str, Tensor]:
    """The mean of each loss that ``stage`` gives a weight, in nats, by its name in Stage.

    teacher: who knew the languages before, for the loss ``distil``; it hears the sound with its own ears.
    """
    speech = dropped(blank_spans(_heard(network, batch), stage.mask, generator), stage.dropout, generator)
    out = {}
    if stage.ctc > 0:
        labels, places, weight = candidate_labels(
            batch.pieces, blank=tokenizer.blank, vocabulary=len(tokenizer.alphabet), extra=stage.ctc_extra,
            generator=generator,
        )  # fmt: skip
        logits = network.ctc_logits(speech, labels) + weight
        slots = network.slots(speech)
        out["ctc"] = ctc_loss(logits, slots, places, batch.piece_lengths, blank=0).mean()
    if stage.diffusion == 0 and stage.ar == 0 and stage.distil == 0:
        return out
    cache = network.prefill(speech, batch.languages)
    blurred = ctc.blurred(cache.ctc.detach().float(), most=stage.blur, generator=generator)
    paths = ctc.heard(blurred, cache.slots, blank=tokenizer.blank, joined=tokenizer.joined)
    if stage.ar > 0 or stage.distil > 0:
        out |= _causal((network, teacher), batch, cache, paths, stage, tokenizer, generator)
    if stage.diffusion > 0:
        rows = _some(len(paths), stage.diffusion_share, generator)
        chosen = [paths[row] for row in rows.tolist()]
        cache = network.select(cache, rows)
        out["diffusion"] = _diffusion(network, part(batch, rows), cache, chosen, stage, tokenizer, generator)
    return out


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """So many of ``count`` rows, at least one, in random order; all of them as they come."""
    if share >= 1:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[: max(1, round(share * count))]


def _heard(network: Network, batch: Batch) -> Speech:
    """Frames as they were stored, or those that the encoder makes of the sound now."""
    if isinstance(batch.speech, Speech):
        return batch.speech
    return network.hear(batch.speech.features, batch.speech.lengths)


def _causal(  # noqa: PLR0913
    networks: tuple[Network, Network | None],
    batch: Batch,
    cache: Cache,
    paths: Sequence[ctc.Path],
    stage: Stage,
    tokenizer: Tokenizer,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of a share of the rows with the causal mask on: the truth's, and the distance from the teacher.

    The teacher reads the truth whatever the row reads.
    """
    network, teacher = networks
    chosen = _some(len(paths), stage.ar_share, generator)
    texts = [batch.tokens[row, : int(batch.lengths[row])].tolist() for row in chosen]
    rows = [
        read_row(text, paths[row], stage, tokenizer, generator)
        for text, row in zip(texts, chosen.tolist(), strict=True)
    ]
    read, said, counts = padded(rows, end=tokenizer.end)
    logits = network.ar_logits(read, network.select(cache, chosen))  # (R, U + 1, V)
    out = {}
    if stage.ar > 0:
        out["ar"] = ar_loss(logits, said, counts, smoothing=stage.smoothing).mean()
    if stage.distil > 0 and teacher is not None:
        codes = [list(LANGUAGES)[int(n)] for n in batch.languages[chosen]]
        taught = [n for n, row in enumerate(rows) if row.first == 0 and codes[n] in stage.teaches]
        out["distil"] = _from_teacher(teacher, batch, chosen[taught], logits[taught]) if taught else logits.sum() * 0
    return out


def _from_teacher(teacher: Network, batch: Batch, rows: Tensor, logits: Tensor) -> Tensor:
    """How far (R, ≥ U + 1, V) logits are from the teacher's, over the true text of ``rows`` (R,).

    The first token and the end don't count: a Whisper begins with a space, which our texts do not, and without padding
    it does not know where to stop.
    """
    lengths = batch.lengths[rows]
    tokens = batch.tokens[rows, : int(lengths.max())]  # (R, U)
    with torch.no_grad():
        wanted = teacher.ar_logits(tokens, teacher.prefill(_only(teacher, batch, rows), batch.languages[rows]))
    return distil_loss(logits[:, 1 : wanted.shape[1]], wanted[:, 1:], lengths - 1).mean()


def _only(network: Network, batch: Batch, rows: Tensor) -> Speech:
    """Some rows of a batch, as ``network`` hears them."""
    sound = batch.speech
    if isinstance(sound, Speech):
        return Speech(frames=sound.frames[rows], lengths=sound.lengths[rows])
    return network.hear(sound.features[rows], sound.lengths[rows])


def _diffusion(  # noqa: PLR0913
    network: Network,
    batch: Batch,
    cache: Cache,
    paths: Sequence[ctc.Path],
    stage: Stage,
    tokenizer: Tokenizer,
    generator: torch.Generator,
) -> Tensor:
    """The loss of noisy canvases, or of drafts of them, with everything in sight."""
    vocabulary, end, rows = tokenizer.size, tokenizer.end, len(paths)
    slack = int(torch.randint(stage.slack + 1, (), generator=generator))
    size = ctc.canvas_length(int(batch.lengths.max()), slack=slack)
    clean = torch.full((rows, size), end)
    width = min(size, int(batch.lengths.max()))
    clean[:, :width] = batch.tokens[:, :width]
    lengths = torch.full((rows,), size)
    seeds, hints = clean.clone(), torch.full((rows, size), -1)
    for row, path in enumerate(paths):
        count = min(size, int(batch.lengths[row]))
        heard, slots = fitted_draft(path, clean[row, :count].tolist(), vocabulary=vocabulary, generator=generator)
        seeds[row, :count], hints[row, :count] = torch.tensor(heard), torch.tensor(slots)
    hints[torch.rand(rows, generator=generator) < stage.hint_drop] = -1
    if stage.audio_drop > 0:
        is_deaf = torch.rand(rows, generator=generator) < stage.audio_drop
        hints[is_deaf] = -1
        cache = network.without_audio(cache, is_deaf)

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
    return diffusion_loss(logits, clean, lengths, smoothing=stage.smoothing).mean()


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
