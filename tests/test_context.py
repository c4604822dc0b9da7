"""What a row reads: the truth or a draft of it. A draft changes what is read, never what is right."""

from typing import Any

import pytest
import torch
from conftest import VOCABULARY, random_speech, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from diffasr.diffusion.ctc import Path
from diffasr.train.context import Row, fitted_draft, padded, part, read_row
from diffasr.train.data import Batch
from diffasr.train.stages import Stage

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.end
WORDS = list(range(1, 30))  # letters and merges: tokens that spell something
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20)


def heard(tokens: list[int]) -> Path:
    return Path(list(tokens), [3 * n for n in range(len(tokens))], -1.0)


def row_of(tokens: list[int], path: Path, seed: int = 0, **options: Any) -> Row:
    stage = Stage(name="s", steps=1, rates={"decoder": 1e-3}, **({"draft_noise": 0.0} | options))
    return read_row(tokens, path, stage, TOKENIZER, torch.Generator().manual_seed(seed))


@given(texts, texts, st.integers(0, 10**6))
def test_without_drafts_a_row_reads_the_truth(tokens: list[int], other: list[int], seed: int) -> None:
    assert row_of(tokens, heard(other), seed) == Row(tokens, [*tokens, END], 0)


@given(texts, texts, st.integers(0, 10**6))
def test_a_fitted_draft_has_a_token_for_each_place(tokens: list[int], other: list[int], seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    path = heard(other)
    draft, slots = fitted_draft(path, tokens, vocabulary=VOCABULARY, generator=dice)
    assert len(draft) == len(slots) == len(tokens)
    assert all(0 <= token < VOCABULARY for token in draft)
    known = dict(zip(path.slots, path.tokens, strict=True))
    assert all(known[slot] == token for token, slot in zip(draft, slots, strict=True) if slot >= 0)
    assert fitted_draft(heard(tokens), tokens, vocabulary=VOCABULARY, generator=dice)[0] == tokens
    row = row_of(tokens, path, seed, ar_draft=1.0)
    assert row.said == [*tokens, END] and row.first == 0, "what is right stays"
    assert len(row.read) == len(tokens)


def test_where_ctc_heard_nothing_the_fill_is_random() -> None:
    drafts = [
        fitted_draft(Path([], [], 0.0), [1, 2, 3], vocabulary=VOCABULARY, generator=torch.Generator().manual_seed(s))
        for s in range(60)
    ]
    assert all(slots == [-1] * 3 for _, slots in drafts)
    assert len({token for draft, _ in drafts for token in draft}) > VOCABULARY // 2


def test_shares_of_drafts_and_of_drift_are_met() -> None:
    tokens, path = [1, 2, 3, 4, 5, 6], heard([7, 8, 9, 10, 11])
    rows = [row_of(tokens, path, seed, ar_draft=0.4) for seed in range(400)]
    assert sum(row.read != tokens for row in rows) / 400 == pytest.approx(0.4, abs=0.07)
    rows = [row_of(tokens, path, seed, ar_draft=1.0, drift=0.3) for seed in range(400)]
    drifted = [row for row in rows if row.said != [*tokens, END]]
    assert len(drifted) / 400 == pytest.approx(0.3, abs=0.07)


def test_noise_changes_what_is_read_and_nothing_else() -> None:
    tokens = list(range(1, 21))
    wrong = {}
    for noise in (0.0, 0.5, 1.0):
        rows = [row_of(tokens, heard(tokens), seed, ar_draft=1.0, draft_noise=noise) for seed in range(60)]
        assert all(row.said == [*tokens, END] and row.first == 0 for row in rows)
        wrong[noise] = sum(a != b for row in rows for a, b in zip(row.read, tokens, strict=True)) / (60 * 20)
    assert wrong[0.0] == 0
    assert wrong[0.5] == pytest.approx(0.25, abs=0.06)  # uniform from 0 to the most
    assert wrong[1.0] == pytest.approx(0.5, abs=0.1)


@given(texts.filter(lambda t: len(t) > 1), texts, st.integers(0, 10**6))
def test_a_drifted_draft_counts_only_behind_the_cut(tokens: list[int], other: list[int], seed: int) -> None:
    path = heard(other)
    row = row_of(tokens, path, seed, ar_draft=1.0, drift=1.0)
    assert len(row.said) == len(row.read) + 1
    assert row.read[: row.first] == path.tokens[: row.first], "before the cut it reads what CTC heard, as it is"
    behind = row.said[row.first :]
    assert behind == [*tokens, END][-len(behind) :], "behind it the rest of the truth is right"
    assert 2 <= len(behind) <= len(tokens), "never nothing but the end, never all of it"


@given(texts, st.integers(0, 10**6))
def test_who_hears_all_does_not_drift(tokens: list[int], seed: int) -> None:
    row = row_of(tokens, heard(tokens), seed, ar_draft=1.0, drift=1.0)
    assert TOKENIZER.spell(row.read) == TOKENIZER.spell(tokens)
    assert row.said[row.first :][-1] == END


def test_one_token_cannot_be_cut() -> None:
    assert row_of([4], heard([5, 6]), ar_draft=1.0, drift=1.0).first == 0


@given(st.lists(st.tuples(texts, st.integers(0, 3)), min_size=1, max_size=5))
def test_padding_counts_no_place_that_is_not_the_rows(given_rows: list[tuple[list[int], int]]) -> None:
    rows = [Row(tokens, [*tokens, END], min(first, len(tokens))) for tokens, first in given_rows]
    read, said, counts = padded(rows, end=END)
    size = max(len(row.read) for row in rows)
    assert read.shape == (len(rows), size) and said.shape == counts.shape == (len(rows), size + 1)
    for number, row in enumerate(rows):
        assert read[number].tolist() == row.read + [END] * (size - len(row.read))
        assert said[number].tolist() == row.said + [END] * (size - len(row.read))
        assert counts[number].nonzero()[:, 0].tolist() == list(range(row.first, len(row.said)))


def test_rows_without_a_token_are_read_too() -> None:
    read, said, counts = padded([Row([], [END], 0)], end=END)
    assert (read.shape, said.tolist(), counts.tolist()) == ((1, 0), [[END]], [[True]])


def test_a_part_of_a_batch_has_those_rows_and_the_same_speech() -> None:
    speech = random_speech([30, 20, 40])
    numbers = {name: torch.arange(3) * 10 + n for n, name in enumerate(("languages", "lengths", "piece_lengths"))}
    batch = Batch(speech=speech, tokens=torch.arange(12).view(3, 4), pieces=torch.arange(6).view(3, 2), **numbers)
    chosen = part(batch, torch.tensor([2, 0]))
    assert chosen.speech is speech
    for name in ("languages", "tokens", "lengths", "pieces", "piece_lengths"):
        assert torch.equal(getattr(chosen, name), getattr(batch, name)[[2, 0]]), name
