"""Words have times in order, inside the sound, where its energy says; and evidence from both networks and the votes."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.model.checkpoint import find
from diffasr.text import Tokenizer
from diffasr.words import EARLY, LATE, HeardWord, place_words, word_times

SLOT = 0.08


@dataclass(frozen=True)
class Vote:
    """A text as the denoiser would hand it over."""

    text: str
    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]


def vote(tokenizer: Tokenizer, text: str, sure: float = -0.1) -> Vote:
    """Each token a little less sure than the one before."""
    ids = tokenizer.encode(text)
    return Vote(text, tuple(ids), tuple(sure * (n + 1) for n in range(len(ids))))


def placed(*peaks: tuple[int, int]) -> list[HeardWord]:
    return [HeardWord(word="x", first=a, last=b, probability=1.0) for a, b in peaks]


def sound(seconds: float, *loud: tuple[float, float], noise: float = 1e-4, seed: int = 0) -> Samples:
    """White noise, loud between the given times."""
    samples = np.full(round(seconds * SAMPLE_RATE_HZ), noise)
    for start, end in loud:
        samples[round(start * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)] = 0.3
    dice = np.random.default_rng(seed)
    return (samples * dice.uniform(0.8, 1, len(samples)) * dice.choice([-1, 1], len(samples))).astype(np.float32)


def logits_of(tokenizer: Tokenizer, text: str, slots: int, *, sure: float = 20.0) -> torch.Tensor:
    """CTC hears a label at every other slot, from slot 1 on."""
    path = torch.full((slots,), tokenizer.blank)
    labels = tokenizer.pieces(text)
    path[1 : 2 * len(labels) : 2] = torch.tensor(labels)
    return sure * torch.nn.functional.one_hot(path, VOCABULARY).float()


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=8),
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), max_size=6),
    st.integers(0, 99),
)
def test_times_are_in_order_inside_the_sound_and_around_the_peaks(
    moves: list[tuple[int, int]], loud: list[tuple[float, float]], seed: int
) -> None:
    place, peaks = 0, []
    for step, size in moves:
        peaks.append((place + step, place + step + size))
        place += step + size
    seconds = SLOT * (place + 1)
    samples = sound(seconds, *[(min(p), max(p)) for p in loud], seed=seed)
    times = word_times(placed(*peaks), samples, SLOT)
    flat = [t for pair in times for t in pair]
    assert flat == sorted(flat)
    assert flat[0] >= 0 and flat[-1] <= len(samples) / SAMPLE_RATE_HZ
    assert all(end - start >= 0.0199 for start, end in times), "no word is without length"
    even = sound(seconds, (0, seconds))
    for (first, last), (start, end) in zip(peaks, word_times(placed(*peaks), even, SLOT), strict=True):
        assert start <= first * SLOT + 1e-9 and last * SLOT <= end + 1e-9


def test_a_peak_in_the_silence_around_the_speech_is_not_believed() -> None:
    samples = sound(3.0, (0.7, 1.5), (1.9, 2.2))
    times = word_times(placed((0, 0), (10, 17), (20, 32)), samples, SLOT)
    assert times[0][0] == pytest.approx(0.7, abs=0.0151)
    assert times[1][1] == pytest.approx(1.5, abs=0.0151)
    assert times[2] == pytest.approx((1.9, 2.2), abs=0.0251)
    ((start, end),) = word_times(placed((34, 34)), samples, SLOT)
    assert 1.89 <= start < end <= 2.21


@given(st.floats(0.1, 0.35), st.floats(0.6, 0.85), st.floats(1.0, 1.2), st.floats(1.5, 1.8), st.floats(1e-5, 0.01))
def test_pauses_are_found_to_a_hundredth_of_a_second(a: float, b: float, c: float, d: float, noise: float) -> None:
    samples = sound(2.4, (a, b), (c, d), noise=noise)
    times = word_times(placed((5, 6), (16, 17)), samples, SLOT)
    assert [t for pair in times for t in pair] == pytest.approx([a, b, c, d], abs=0.0151)


def test_without_a_pause_a_word_ends_where_the_sound_is_weakest() -> None:
    samples = sound(2.0, (0.2, 1.8))
    samples[round(0.92 * SAMPLE_RATE_HZ) : round(0.94 * SAMPLE_RATE_HZ)] *= 0.3  # a dip, too loud for a pause
    (start, middle), (again, end) = word_times(placed((4, 9), (12, 20)), samples, SLOT)
    assert middle == again == pytest.approx(0.93, abs=0.01)
    assert (start, end) == pytest.approx((0.2, 1.8), abs=0.0151)


def test_in_even_sound_the_known_lateness_of_ctc_decides() -> None:
    samples = sound(4.0, (0.0, 4.0))
    (start, _), (_, end) = word_times(placed((20, 22), (26, 30)), samples, SLOT)
    assert (start, end) == pytest.approx((20 * SLOT - LATE, 30 * SLOT + EARLY))
    (_, edge), _ = word_times(placed((20, 22), (26, 30)), samples, SLOT)
    assert edge == pytest.approx((22 * SLOT + EARLY + 26 * SLOT - LATE) / 2, abs=0.07)


def test_silence_and_scraps_of_sound_break_nothing() -> None:
    assert word_times([], sound(1.0), SLOT) == []
    for size in (0, 1, 79, 80, 200, 4000):
        for samples in (np.zeros(size, np.float32), sound(size / SAMPLE_RATE_HZ, (0, 1))):
            times = word_times(placed((0, 0), (0, 2), (2, 3)), samples, SLOT)
            flat = [t for pair in times for t in pair]
            assert flat == sorted(flat) and 0 <= flat[0] <= flat[-1] <= size / SAMPLE_RATE_HZ


def test_words_are_put_at_the_peaks_of_their_labels() -> None:
    tokenizer = tiny_tokenizer()
    words = place_words(tokenizer, logits_of(tokenizer, "the cat and", 20), "the cat and", "en")
    counts = [last - first + 1 for _, first, last in tokenizer.words("the cat and", "en")]
    assert [w.word for w in words] == ["the", "cat", "and"]
    assert [(w.last - w.first) // 2 + 1 for w in words] == counts
    assert words[0].first == 1
    assert all(w.probability == pytest.approx(1, abs=1e-4) and w.confidence is None for w in words)


def test_a_text_too_long_for_its_slots_is_spread_over_them() -> None:
    tokenizer, text = tiny_tokenizer(), "the cat and a dog"
    words = place_words(tokenizer, torch.zeros(4, VOCABULARY), text, "en", ballots=[vote(tokenizer, text)])
    assert [w.word for w in words] == text.split()
    assert all(0 <= w.first <= w.last <= 3 and w.probability == 0 for w in words)
    assert all(w.evidence.letters == w.evidence.weakest_letter == -20 for w in words)
    assert place_words(tokenizer, torch.zeros(4, VOCABULARY), "", "en") == ()


def test_evidence_is_that_of_the_own_labels_and_tokens() -> None:
    tokenizer, text = tiny_tokenizer(), "the cat a dog"
    ballot = vote(tokenizer, text)
    logits = logits_of(tokenizer, text, 30, sure=3.0)
    logits[1] *= 0.5  # the first label is less sure
    words = place_words(tokenizer, logits, text, "en", ballots=[ballot])
    written = [(tokenizer.spell([i]), p) for i, p in zip(ballot.tokens, ballot.token_logprobs, strict=True)]
    written = [(letters, p) for letters, p in written if letters]  # a bare space is no part of a word
    for word in words:
        scores, spelled = [], ""
        while spelled != word.word:
            letters, score = written.pop(0)
            spelled += letters
            scores.append(score)
        assert word.evidence.written == pytest.approx(sum(scores) / len(scores))
        assert word.evidence.weakest_token == pytest.approx(min(scores))
        assert word.evidence.agreement == 1
        assert math.exp(word.evidence.letters) == pytest.approx(word.probability)
        assert word.evidence.weakest_letter <= word.evidence.letters
    assert not written
    sure = logits.log_softmax(-1)[1].max()
    assert words[0].evidence.weakest_letter == pytest.approx(float(sure), abs=1e-5)
    assert words[1].evidence.weakest_letter > words[0].evidence.weakest_letter


def test_agreement_is_the_share_of_votes_that_have_the_word() -> None:
    tokenizer = tiny_tokenizer()
    ballots = [
        vote(tokenizer, t, sure) for t, sure in [("the cat sat", -0.1), ("a cat sat", -0.3), ("the hat sat", -0.2)]
    ]
    logits = logits_of(tokenizer, "the cat sat", 30)
    words = place_words(tokenizer, logits, "the cat sat", "en", ballots=ballots)
    assert [w.evidence.agreement for w in words] == pytest.approx([2 / 3, 2 / 3, 1])
    first = [ballots[0].token_logprobs[0], ballots[2].token_logprobs[0]]
    assert words[0].evidence.written == pytest.approx(sum(first) / 2), "of the votes that have it"
    alone = place_words(tokenizer, logits, "the cat sat", "en")
    assert all(w.evidence.written == 0 and w.evidence.agreement == 1 for w in alone)
    lost = place_words(tokenizer, logits, "the cat sat", "en", ballots=[vote(tokenizer, "dog")])
    assert all(w.evidence.agreement == 0 and w.evidence.written == -20 for w in lost)


def test_mandarin_is_timed_and_judged_by_characters() -> None:
    tokenizer = Tokenizer.load(find("mini") / "tokenizer.json", letters=2)
    text = "你好吗"
    labels = tokenizer.pieces(text)
    path = torch.full((12,), tokenizer.blank)
    path[1 : 2 * len(labels) : 2] = torch.tensor(labels)
    logits = 20 * torch.nn.functional.one_hot(path, len(tokenizer.alphabet)).float()
    words = place_words(tokenizer, logits, text, "zh", ballots=[vote(tokenizer, text)])
    assert [w.word for w in words] == list(text)
    assert [w.first for w in words] == sorted({w.first for w in words})
    assert all(w.evidence.written > -20 for w in words)
