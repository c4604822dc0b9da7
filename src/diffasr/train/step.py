"""One batch in, its losses out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffasr.audio import WINDOW_SECONDS
from diffasr.diffusion import batched, ctc
from diffasr.diffusion.corrupt import corrupt, draw_times
from diffasr.diffusion.loss import ar_loss, candidate_labels, ctc_loss, diffusion_loss, distil_loss
from diffasr.model.network import Cache, Network, Speech
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train.context import fitted_draft, padded, part, read_row
from diffasr.train.data import Batch
from diffasr.train.stages import Stage

OTHER_DICE = 0x9E3779B9
"""What the seed of the dice for rows differs by."""


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

    teacher: who knew the languages before, for the loss ``distil``; it hears the sound with its own ears, in windows of
    30 s as it was trained. generator: on the network's device.
    """
    speech = _heard(network, batch, stage.spec_augment, generator)
    speech = dropped(blank_spans(speech, stage.mask, generator), stage.dropout, generator)
    out = {}
    if stage.ctc > 0:
        labels, places, weight = candidate_labels(
            batch.pieces, blank=tokenizer.blank, vocabulary=len(tokenizer.alphabet), extra=stage.ctc_extra,
            generator=generator,
        )  # fmt: skip
        logits = network.ctc_logits(speech, labels) + weight
        slots = network.slots(speech)
        out["ctc"] = ctc_loss(logits, slots, places, batch.piece_lengths, blank=0).mean()
    if not (stage.diffusion or stage.ar or stage.distil):
        return out
    cache = network.prefill(speech, batch.languages)
    blurred = batched.blurred(cache.ctc.detach().float(), most=stage.blur, generator=generator)
    paths = batched.heard(blurred, cache.slots, blank=tokenizer.blank, joined=tokenizer.joined)
    # What is done row by row is done on the CPU, with dice of its own: each question to a GPU is a wait for it.
    dice = torch.Generator("cpu").manual_seed(generator.initial_seed() ^ OTHER_DICE)
    if stage.ar > 0 or stage.distil > 0:
        out |= _causal((network, teacher), batch, cache, paths, stage, tokenizer, dice)
    if stage.diffusion > 0:
        rows = _some(len(paths), stage.diffusion_share, dice)
        chosen = [paths[row] for row in rows.tolist()]
        cache = network.select(cache, rows.to(cache.slots.device))
        drafts = _drafts(part(batch, rows.to(cache.slots.device)), chosen, stage, tokenizer, dice)
        out["diffusion"] = _diffusion(network, cache, drafts, stage, tokenizer, generator)
    return out


def _some(count: int, share: float, dice: torch.Generator) -> Tensor:
    """So many of ``count`` rows, at least one, in random order; all of them as they come. On the CPU."""
    if share >= 1:
        return torch.arange(count, device="cpu")
    return torch.randperm(count, generator=dice, device="cpu")[: max(1, round(share * count))]


def _heard(network: Network, batch: Batch, blanked: float, generator: torch.Generator) -> Speech:
    """Frames as they were stored, or those that the encoder makes of the sound now; ``blanked``: share of its rows."""
    if isinstance(batch.speech, Speech):
        return batch.speech
    sound = batch.speech
    return network.hear(blank_mel(sound.features, sound.lengths, blanked, generator), sound.lengths)


def _causal(  # noqa: PLR0913
    networks: tuple[Network, Network | None],
    batch: Batch,
    cache: Cache,
    paths: Sequence[ctc.Path],
    stage: Stage,
    tokenizer: Tokenizer,
    dice: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of a share of the rows with the causal mask on: the truth's, and the distance from the teacher.

    The teacher reads the truth whatever the row reads.
    """
    network, teacher = networks
    device = cache.slots.device
    chosen = _some(len(paths), stage.ar_share, dice)
    tokens, lengths, languages = batch.tokens.tolist(), batch.lengths.tolist(), batch.languages.tolist()
    rows = [read_row(tokens[row][: lengths[row]], paths[row], stage, tokenizer, dice) for row in chosen.tolist()]
    read, said, counts = (part.to(device) for part in padded(rows, end=tokenizer.end))
    logits = network.ar_logits(read, network.select(cache, chosen.to(device)))  # (R, U + 1, V)
    out = {}
    if stage.ar > 0:
        out["ar"] = ar_loss(logits, said, counts, smoothing=stage.smoothing).mean()
    if stage.distil > 0 and teacher is not None:
        codes = [list(LANGUAGES)[languages[row]] for row in chosen.tolist()]
        taught = [n for n, row in enumerate(rows) if not row.is_shifted and codes[n] in stage.teaches]
        theirs = chosen[taught].to(device)
        out["distil"] = _from_teacher(teacher, batch, theirs, logits[taught]) if taught else logits.sum() * 0
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
    """Some rows of a batch, as ``network`` hears them: sound with silence behind it up to 30 s."""
    sound = batch.speech
    if isinstance(sound, Speech):
        return Speech(frames=sound.frames[rows], lengths=sound.lengths[rows])
    mels = in_silence(sound.features[rows], sound.lengths[rows])
    return network.hear(mels, torch.full_like(sound.lengths[rows], mels.shape[2]))


def in_silence(features: Tensor, lengths: Tensor) -> Tensor:
    """(B, mels, M) log-mel features, ``lengths`` of them real, to (B, mels, 3000) with silence behind them."""
    size = round(WINDOW_SECONDS * 100)
    out = F.pad(features, (0, max(0, size - features.shape[2])))[:, :, :size]
    real = (torch.arange(size, device=out.device) < lengths[:, None])[:, None]  # (B, 1, 3000)
    return torch.where(real, out, _quietest(out, lengths))


def _quietest(features: Tensor, lengths: Tensor) -> Tensor:
    """What ``log_mel`` cuts off at, two below the loudest of a clip: (B, 1, 1)."""
    real = torch.arange(features.shape[2], device=features.device) < lengths[:, None]
    return features.masked_fill(~real[:, None], float("-inf")).amax((1, 2), keepdim=True) - 2.0


def blank_mel(features: Tensor, lengths: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Make two bands, each of up to an eighth of the mels, and up to 0.3 s of every three seconds as quiet as it gets.

    In ``share`` of the rows of (B, mels, M) features, ``lengths`` (B,) of them real.

    Source: arXiv:1904.08779 section 2, frequency and time masking.
    """
    if share == 0:
        return features
    rows, mels, size = features.shape
    everywhere = torch.full((rows,), mels)
    bands = _spans(everywhere, mels, longest=max(1, mels // 8), every=mels, generator=generator)
    times = _spans(lengths, size, longest=30, every=300, generator=generator)
    chosen = torch.rand(rows, 1, 1, generator=generator) < share
    blank = (bands[:, :, None] | times[:, None]) & chosen
    return torch.where(blank, _quietest(features, lengths), features)


def _spans(lengths: Tensor, size: int, *, longest: int, every: int, generator: torch.Generator) -> Tensor:
    """Places (B, size) in spans of 1 to ``longest`` inside of each row's ``lengths`` (B,): 1 + length // every."""
    most = 1 + size // every
    spans = torch.randint(1, longest + 1, (len(lengths), most), generator=generator)
    room = (lengths[:, None] - spans + 1).clamp_min(1)
    first = (torch.rand(len(lengths), most, generator=generator) * room).long()[..., None]
    is_used = torch.arange(most) <= lengths[:, None] // every
    places = torch.arange(size)
    inside = (places >= first) & (places < first + spans[..., None]) & is_used[..., None]  # (B, spans, size)
    return inside.any(1) & (places < lengths[:, None])


@dataclass(frozen=True, kw_only=True)
class _Drafts:
    """What CTC may have heard of some texts, each fitted to the truth, on canvases of one length."""

    clean: Tensor
    """(R, L) the truth, end tokens behind it."""
    heard: Tensor
    """(R, L)."""
    hints: Tensor
    """(R, L) the slot that each was heard at, -1 for none."""


def _drafts(
    batch: Batch, paths: Sequence[ctc.Path], stage: Stage, tokenizer: Tokenizer, dice: torch.Generator
) -> _Drafts:
    """The canvases of a batch, where the batch is."""
    vocabulary, end, rows = tokenizer.size, tokenizer.end, len(paths)
    tokens, lengths = batch.tokens.tolist(), batch.lengths.tolist()
    slack = int(torch.randint(stage.slack + 1, (), generator=dice, device="cpu"))
    size = ctc.canvas_length(max(lengths), slack=slack)
    clean, hints = torch.full((rows, size), end, device="cpu"), torch.full((rows, size), -1, device="cpu")
    seeds = clean.clone()
    for row, path in enumerate(paths):
        true = tokens[row][: min(size, lengths[row])]
        heard, slots = fitted_draft(path, true, vocabulary=vocabulary, generator=dice)
        for table, values in ((clean, true), (seeds, heard), (hints, slots)):
            table[row, : len(true)] = torch.tensor(values, device="cpu")
    to = batch.tokens.device
    return _Drafts(clean=clean.to(to), heard=seeds.to(to), hints=hints.to(to))


def _diffusion(
    network: Network, cache: Cache, drafts: _Drafts, stage: Stage, tokenizer: Tokenizer, generator: torch.Generator
) -> Tensor:
    """The loss of noisy canvases, or of drafts of them, with everything in sight."""
    clean, hints = drafts.clean, drafts.hints
    rows, size = clean.shape
    lengths = torch.full((rows,), size)
    hints[torch.rand(rows, generator=generator) < stage.hint_drop] = -1
    if stage.audio_drop > 0:
        is_deaf = torch.rand(rows, generator=generator) < stage.audio_drop
        hints[is_deaf] = -1
        cache = network.without_audio(cache, is_deaf)

    is_draft = torch.rand(rows, generator=generator) < stage.draft_share
    start = torch.where(is_draft[:, None], drafts.heard, clean)
    t = draw_times(rows, full_share=stage.full_share, generator=generator)
    t = torch.where(is_draft, stage.draft_noise * torch.rand(rows, generator=generator), t)
    noisy, _ = corrupt(start, t, vocabulary=tokenizer.size, generator=generator)

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
    blank = _spans(speech.lengths, size, longest=longest, every=150, generator=generator)
    blank &= torch.rand(rows, 1, generator=generator) < share
    return Speech(frames=speech.frames * ~blank[:, :, None], lengths=speech.lengths)
