"""A recording in, its sounding parts out: what lies between two stretches of digital silence.

Digital silence is samples of 0. Resampling keeps it, and so do most codecs. Each part begins and ends with a sample
that is not 0, so it does not depend on how much silence is around it. Nor do its chunks depend on how the recording was
read. Whoever treats each part as a recording of its own says of joined recordings what he says of each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from diffasr.audio import Samples


@dataclass(frozen=True)
class Chunk:
    """Some of one part; ``start`` is its first sample's place in the recording."""

    start: int
    samples: Samples
    is_last: bool
    """Of its part."""


def sounding(blocks: Iterable[Samples], *, shortest: int, size: int) -> Iterator[Chunk]:
    """Blocks (n,) of one recording to the chunks of its parts: ``size`` samples each, and the last of a part the rest.

    shortest: samples of a digital silence that parts two; one at the beginning or the end of the recording may be
    shorter. No more is held than a chunk, such a silence and a block.
    """
    held: Samples = np.zeros(0, np.float32)
    start, is_inside = 0, False
    for block in blocks:
        held = np.concatenate((held, block))
        loud = np.flatnonzero(held)
        while len(loud):
            if not is_inside:
                held, start, loud = held[loud[0] :], start + int(loud[0]), loud - loud[0]
                is_inside = True
            behind = np.append(loud[1:], len(held))  # where the silence behind each loud sample ends
            ends = np.flatnonzero(behind - loud > shortest)
            end = int(loud[ends[0]] if len(ends) else loud[-1]) + 1
            yield from _cut(start, held[:end], size, is_last=bool(len(ends)))
            taken = end if len(ends) else (end - 1) // size * size
            held, start, loud = held[taken:], start + taken, loud[loud >= taken] - taken
            is_inside = not len(ends)
            if is_inside:
                break
        if not is_inside:
            held, start = held[:0], start + len(held)
    if is_inside:
        end = int(np.flatnonzero(held)[-1]) + 1
        yield from _cut(start, held[:end], size, is_last=True)


def _cut(start: int, samples: Samples, size: int, *, is_last: bool) -> Iterator[Chunk]:
    """Whole chunks while there is more behind them; with ``is_last`` the rest, too."""
    begin = 0
    while len(samples) - begin > size:
        yield Chunk(start + begin, samples[begin : begin + size], False)
        begin += size
    if is_last:
        yield Chunk(start + begin, samples[begin:], True)
