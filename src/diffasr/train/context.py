"""What a row reads while it learns to write: the truth, or what CTC may have heard in its place.

At inference a denoiser reads drafts, not the truth. So part of the rows learn from drafts: fitted to the truth place by
place, or, before a cut, as they are, with words too many and too few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffasr.diffusion import ctc
from diffasr.diffusion.corrupt import corrupt
from diffasr.text import Tokenizer
from diffasr.train.data import Batch
from diffasr.train.stages import Stage


@dataclass(frozen=True)
class Row:
    """One text to be learned with the causal mask on."""

    read: list[int]
    """The tokens before each place."""
    said: list[int]
    """What is right at each place, one more than ``read``: the end is last."""
    first: int
    """Places before this one do not count."""
    is_shifted: bool = False
    """Whether the places are not those of the truth."""


def fitted_draft(
    path: ctc.Path, tokens: Sequence[int], *, vocabulary: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """CTC's token and slot for each of ``tokens``; random ones where it heard none."""
    fill = torch.randint(vocabulary, (len(tokens),), generator=generator, device="cpu").tolist()
    return ctc.fitted(path, tokens, fill=fill)


def read_row(tokens: list[int], path: ctc.Path, stage: Stage, tokenizer: Tokenizer, generator: torch.Generator) -> Row:
    """The truth before each place, or in ``ar_draft`` of the rows a draft of it. generator: on the CPU."""
    said, draws = [*tokens, tokenizer.end], torch.rand(3, generator=generator, device="cpu").tolist()
    if draws[0] >= stage.ar_draft:
        return Row(tokens, said, 0)
    heard, _ = fitted_draft(path, tokens, vocabulary=tokenizer.size, generator=generator)
    with torch.device("cpu"):
        level = torch.tensor([stage.draft_noise * draws[1]])
        noisy, _ = corrupt(torch.tensor([heard]), level, vocabulary=tokenizer.size, generator=generator)
    read: list[int] = noisy[0].tolist()
    if draws[2] >= stage.drift or len(tokens) < 2:
        return Row(read, said, 0)
    cut = int(torch.randint(1, len(tokens), (), generator=generator, device="cpu"))
    used = ctc.consumed(tokenizer.spell(tokens[:cut]), [tokenizer.spell([token]) for token in path.tokens])
    before = path.tokens[:used]
    return Row(before + read[cut:], before + said[cut:], used, is_shifted=True)


def padded(rows: Sequence[Row], *, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as what is read (R, U), what is right (R, U + 1), and which places count (R, U + 1), on the CPU."""
    size, cpu = max(len(row.read) for row in rows), torch.device("cpu")
    read, said = torch.full((len(rows), size), end, device=cpu), torch.full((len(rows), size + 1), end, device=cpu)
    counts = torch.zeros(len(rows), size + 1, dtype=torch.bool, device=cpu)
    for number, row in enumerate(rows):
        read[number, : len(row.read)] = torch.tensor(row.read, dtype=torch.long, device=cpu)
        said[number, : len(row.said)] = torch.tensor(row.said, device=cpu)
        counts[number, row.first : len(row.said)] = True
    return read, said, counts


def part(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch; their speech is not cut out."""
    return Batch(
        speech=batch.speech,
        languages=batch.languages[rows],
        tokens=batch.tokens[rows],
        lengths=batch.lengths[rows],
        pieces=batch.pieces[rows],
        piece_lengths=batch.piece_lengths[rows],
    )
