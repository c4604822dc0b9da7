"""Parts are what lies between long silences, whatever the blocks; their chunks are whole, in order, nothing lost."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffasr.audio import Samples
from diffasr.silence import Chunk, sounding

SHORTEST, SIZE = 5, 4
RUNS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5)
"""Samples of silence, then of sound, by turns."""


def of_runs(runs: list[tuple[int, int]]) -> Samples:
    parts = [np.concatenate((np.zeros(quiet), np.full(loud, -1e-30))) for quiet, loud in runs]
    return np.concatenate([*parts, np.zeros(0)]).astype(np.float32)


def parts_of(chunks: list[Chunk]) -> list[tuple[int, Samples]]:
    """Where each part begins, and its samples; its chunks are looked at on the way."""
    found: list[tuple[int, list[Samples]]] = []
    is_new = True
    for chunk in chunks:
        if is_new:
            found.append((chunk.start, []))
        start, held = found[-1]
        assert chunk.start == start + sum(map(len, held))
        assert 0 < len(chunk.samples) <= SIZE
        assert chunk.is_last or len(chunk.samples) == SIZE
        held.append(chunk.samples)
        is_new = chunk.is_last
    assert is_new, "the last part is closed"
    return [(start, np.concatenate(held)) for start, held in found]


def expected(samples: Samples) -> list[tuple[int, Samples]]:
    loud = np.flatnonzero(samples).tolist()
    if not loud:
        return []
    cuts = [(a, b) for a, b in pairwise(loud) if b - a > SHORTEST]
    begins, ends = [loud[0], *(b for _, b in cuts)], [*(a for a, _ in cuts), loud[-1]]
    return [(begin, samples[begin : end + 1]) for begin, end in zip(begins, ends, strict=True)]


@given(runs=RUNS, cuts=st.lists(st.integers(0, 100), max_size=5))
def test_parts_lie_between_long_silences_whatever_the_blocks(runs: list[tuple[int, int]], cuts: list[int]) -> None:
    samples = of_runs(runs)
    blocks = np.split(samples, sorted(min(cut, len(samples)) for cut in cuts))
    chunks = list(sounding(blocks, shortest=SHORTEST, size=SIZE))
    whole = list(sounding([samples], shortest=SHORTEST, size=SIZE))
    assert [(c.start, c.is_last) for c in chunks] == [(c.start, c.is_last) for c in whole]
    for (start, part), (begin, true) in zip(parts_of(chunks), expected(samples), strict=True):
        assert start == begin
        np.testing.assert_array_equal(part, true)


def test_chunks_come_while_the_recording_is_read() -> None:
    read = 0

    def blocks() -> Iterator[Samples]:
        nonlocal read
        for _ in range(50):
            read += 1
            yield np.ones(SIZE, np.float32)

    for number, _ in enumerate(sounding(blocks(), shortest=SHORTEST, size=SIZE), 1):
        assert read <= number + 1
    assert number == 50


def test_an_endless_silence_is_not_held() -> None:
    held = sounding((np.zeros(10**6, np.float32) for _ in range(1000)), shortest=SHORTEST, size=SIZE)
    assert list(held) == []
