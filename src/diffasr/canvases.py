"""Canvases that the denoiser reads as a whole, and a sampler fills: all ways to write but joint writing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffasr.asking import Asking
from diffasr.ballots import guidance
from diffasr.decodable import Heard, decodable
from diffasr.decode import Canvases
from diffasr.diffusion import batched, ctc
from diffasr.diffusion.corrupt import corrupt
from diffasr.diffusion.fuse import fused
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.sampler import Draft, Renew, Step, closed, fresh_rows, sample
from diffasr.hotwords import favoured
from diffasr.model.loaded import Model
from diffasr.text import Tokenizer


@torch.inference_mode()
def denoise_steps(model: Model, cache: Heard, canvases: Canvases, options: SamplingOptions) -> Iterator[Draft]:
    """Start a canvas for each row of ``cache`` as ``options`` and its seed say, and yield the sampler's drafts."""
    paths, seeds, lengths = canvases.paths, canvases.seeds, torch.tensor(canvases.lengths)
    size, vocabulary = int(lengths.max()), model.tokenizer.size
    dice = [torch.Generator().manual_seed(seed + 1) for seed in seeds]  # a die a row, as in the sampler
    if options.start == "noise":
        canvas = fresh_rows(lengths.tolist(), size, dice, vocabulary=vocabulary)
    else:
        canvas = batched.seed_canvas(paths, lengths, end=model.tokenizer.end)
        share = torch.tensor([options.seed_noise])
        for row, (used, die) in enumerate(zip(lengths.tolist(), dice, strict=True)):
            canvas[row, :used] = corrupt(canvas[row : row + 1, :used], share, vocabulary=vocabulary, generator=die)[0]
    end, hints = model.tokenizer.end, batched.hint_slots(paths, size).to(cache.device)
    ask = Asking(decodable(model.network), cache, canvases.lengths, guidance(model, cache, options))
    openings = torch.tensor(model.tokenizer.openings if options.ctc_weight > 0 else (), device=cache.device)

    def denoise(noisy: Tensor, previous: Tensor | None, rows: Tensor) -> Tensor:
        known, numbers = hints[rows.to(cache.device)], rows.tolist()
        logits = ask(noisy, previous, rows, known)
        if options.ctc_weight > 0:
            labels = [torch.as_tensor(cache.labels(row)) for row in numbers]
            heard = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True).to(cache.device)  # (R, N, C)
            logits = fused(logits, heard, known, openings, options.ctc_weight)
        return raised(logits, noisy, [paths[row] for row in numbers], model.tokenizer)

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

    is_prefix = options.accept == "prefix" and options.start != "noise"
    renewed: Renew | None = renew if is_prefix else None
    yield from sample(denoise, canvas, lengths, options, end=end, renew=renewed, seeds=seeds)


def raised(logits: Tensor, canvas: Tensor, paths: Sequence[ctc.Path], tokenizer: Tokenizer) -> Tensor:
    """(B, L, V) logits with each path's favoured words raised, where the ``canvas`` (B, L) holds them."""
    if not any(path.favoured for path in paths):
        return logits
    out = logits.clone()
    for row, path in enumerate(paths):
        places = torch.tensor(sorted(favoured(canvas[row].tolist(), path, tokenizer)), dtype=torch.long)
        out[row, places, canvas[row, places]] += path.favour
    return out


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
