"""Laws of the beam: wide enough, it finds what adding up all paths finds; letters decide where the sound does not."""

import itertools
import math
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffasr.diffusion.beam import Beam, BeamOptions, _Text, _Texts
from diffasr.diffusion.ctc import Path, best_path, log_softmax
from diffasr.diffusion.lattice import Lattice, Sound
from diffasr.letters import LanguageLetters
from diffasr.text import Spelling
from diffasr.train.letters import build

PLAIN = [b"", b"a", b"b"]
"""How each label is written; the first is the blank."""
DOUBLE = [b"", b"a", b"b", b"ab"]
SPACED = [b"", b"a", b" a", b" "]
HALVES = [b"", b"\xc3", b"\xa9", b"\xa8", b"t"]


def letters(*lines: str) -> LanguageLetters:
    return build({"en": lines}, order=4, least=1).language("en")


def best(
    writings: list[bytes],
    log_probs: NDArray[np.float32],
    known: LanguageLetters | None = None,
    *,
    size: int = 1000,
    weight: float = 0.0,
    bonus: float = 0.0,
    blank: int = 0,
) -> Path:
    wanted = BeamOptions(size=size, weight=weight, bonus=bonus)
    return Beam(writings, known or letters("a"), wanted, blank=blank).best(log_probs)


def text_of(path: Path, writings: list[bytes]) -> str:
    return b"".join(writings[label] for label in path.tokens).decode()


def posterior(slots: int, labels: int, seed: int, spread: float = 1.0) -> NDArray[np.float32]:
    """(N, C) log-probabilities, none of them hopeless."""
    logits = spread * torch.randn(slots, labels, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1).numpy()


def says(*slots: dict[int, float], labels: int) -> NDArray[np.float32]:
    """(N, C) of what each slot says: probabilities, the rest shared among the other labels."""
    shares = np.zeros((len(slots), labels))
    for row, heard in zip(shares, slots, strict=True):
        row[:] = (1 - sum(heard.values())) / max(1, labels - len(heard))
        row[[*heard]] = [*heard.values()]
    return np.log(shares.clip(1e-9)).astype(np.float32)


def all_texts(writings: list[bytes], log_probs: NDArray[np.float32]) -> dict[str, float]:
    """The log-probability of each text: that of all its paths."""
    found: dict[str, list[float]] = {}
    for path in itertools.product(range(len(writings)), repeat=len(log_probs)):
        labels = [label for label, _ in itertools.groupby(path)]
        text = b"".join(writings[label] for label in labels).decode().lstrip(" ")
        found.setdefault(text, []).append(sum(float(row[label]) for row, label in zip(log_probs, path, strict=True)))
    return {text: float(np.logaddexp.reduce(scores)) for text, scores in found.items()}


@pytest.mark.parametrize("writings", [PLAIN, DOUBLE, SPACED], ids=["plain", "two ways", "spaces"])
@pytest.mark.parametrize("slots", [1, 3, 4])
def test_without_letters_it_is_the_text_that_all_paths_together_make_likeliest(
    writings: list[bytes], slots: int
) -> None:
    for seed in range(25):
        log_probs = posterior(slots, len(writings), seed)
        wanted, found = all_texts(writings, log_probs), best(writings, log_probs)
        text = text_of(found, writings).lstrip(" ")
        assert text == max(wanted, key=wanted.__getitem__), seed
        assert found.log_probability == pytest.approx(wanted[text], abs=1e-4)


@pytest.mark.parametrize("writings", [PLAIN, DOUBLE], ids=["plain", "two ways"])
def test_letters_and_bonus_are_added_to_what_all_paths_say(writings: list[bytes]) -> None:
    known = letters("ab", "abab", "bb")
    for seed in range(25):
        log_probs = posterior(4, len(writings), seed)
        scores = {t: p + 0.5 * known.text(t) + 0.7 * len(t) for t, p in all_texts(writings, log_probs).items()}
        found = best(writings, log_probs, known, weight=0.5, bonus=0.7)
        assert text_of(found, writings) == max(scores, key=scores.__getitem__), seed


def test_its_log_probability_is_that_of_the_lattice() -> None:
    labels = {"a": 1, "b": 2, "ab": 3}
    spelling = Spelling(names=[], labels=labels, mirrored={}, longer={"a": [3]}, longest=2)
    for seed in range(10):
        log_probs = posterior(6, 4, seed)
        found = best(spelling.writings, log_probs)
        lattice = Lattice(Sound(log_probs, blank=0), labels, spelling)
        assert found.log_probability == pytest.approx(lattice.whole(text_of(found, spelling.writings)), abs=1e-4)


@pytest.mark.parametrize("size", [1, 3, 12])
def test_slots_rise_and_lie_within_the_clip(size: int) -> None:
    for seed in range(10):
        found = best(DOUBLE, posterior(30, 4, seed), size=size)
        assert len(found.slots) == len(found.tokens) > 0
        assert found.slots == sorted(set(found.slots))
        assert 0 <= found.slots[0] <= found.slots[-1] < 30


def test_where_ctc_is_sure_it_is_the_best_path() -> None:
    labels = np.random.default_rng(0).integers(4, size=60)
    logits = 12 * np.eye(4, dtype=np.float32)[labels]
    greedy = best_path(logits, blank=0)
    found = best([b"", b"x", b"y", b"z"], log_softmax(logits), letters("xyz"), size=12, weight=0.3, bonus=1.2)
    assert (found.tokens, found.slots) == (greedy.tokens, greedy.slots)


def test_silence_and_no_sound_at_all_have_no_text() -> None:
    silent = says(*[{0: 0.999}] * 5, labels=3)
    assert best(PLAIN, silent, weight=0.3, bonus=1.2) == Path([], [], pytest.approx(5 * math.log(0.999), abs=1e-4))
    assert best(PLAIN, silent[:0]) == Path([], [], 0.0)


def test_a_blank_parts_two_equal_labels() -> None:
    assert best(PLAIN, says({1: 0.9}, {1: 0.9}, labels=3)).tokens == [1]
    for quiet in (0.9, 0.999):
        assert best(PLAIN, says({1: 0.9}, {0: quiet}, {1: 0.9}, labels=3)).tokens == [1, 1]


WORD = [b"", b"c", b"a", b"o", b"t"]
TWO_VOWELS = says({1: 0.97}, {2: 0.48, 3: 0.48}, {4: 0.97}, labels=5)


@pytest.mark.parametrize("word", ["cat", "cot"])
def test_letters_decide_between_two_labels_that_are_equally_loud(word: str) -> None:
    assert text_of(best(WORD, TWO_VOWELS, letters(word), weight=0.3), WORD) == word


def test_the_beginning_and_the_end_of_a_text_are_read_too() -> None:
    either = says({1: 0.49, 2: 0.49}, labels=3)
    assert text_of(best(PLAIN, either, letters("a", "ac", "cb"), weight=1.0), PLAIN) == "a", "nothing begins with b"
    assert text_of(best(PLAIN, either, letters("b", "b", "ac", "ac"), weight=1.0), PLAIN) == "b", "nothing ends in a"


def test_the_bonus_brings_a_faint_letter_in() -> None:
    faint = says({1: 0.9}, {0: 0.8, 2: 0.15}, {0: 0.9}, labels=3)
    assert text_of(best(PLAIN, faint, bonus=0.0), PLAIN) == "a"
    assert text_of(best(PLAIN, faint, bonus=3.0), PLAIN) == "ab"


@pytest.mark.parametrize("word", ["té", "tè"])
def test_halves_of_a_letter_are_read_when_it_is_whole(word: str) -> None:
    log_probs = says({4: 0.97}, {1: 0.97}, {2: 0.48, 3: 0.48}, labels=5)
    found = best(HALVES, log_probs, letters(word), weight=0.3, bonus=1.0)
    assert text_of(found, HALVES) == word
    assert found.slots == [0, 1, 2]


def test_the_number_of_a_label_has_no_say() -> None:
    known, order = letters("ab", "bab"), [2, 0, 3, 1]
    for seed in range(10):
        log_probs = posterior(12, 4, seed)
        plain = best(DOUBLE, log_probs, known, size=4, weight=0.3, bonus=1.2)
        mixed = best(
            [DOUBLE[n] for n in order], log_probs[:, order], known, size=4, weight=0.3, bonus=1.2, blank=order.index(0)
        )
        assert [order[label] for label in mixed.tokens] == plain.tokens
        assert mixed.slots == plain.slots
        assert mixed.log_probability == pytest.approx(plain.log_probability, abs=1e-6)


def all_read(beam: Beam, texts: _Texts) -> list[_Text]:
    """The best, each text read to its end."""
    for text in texts.values():
        text.total = float(np.logaddexp(text.heard, text.over))
        beam._ask(text.read)
    return sorted(texts.values(), key=lambda text: -text.total - text.read.fluent)[: beam._options.size]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_what_is_not_read_could_not_have_stayed(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Path]:
        return [best(DOUBLE, p, known, size=size, weight=0.9, bonus=0.7) for p in posteriors]

    known, posteriors = letters("abab", "bba", "ba"), [posterior(20, 4, seed, spread=0.5) for seed in range(8)]
    asked = MagicMock(wraps=known.log_probability)
    monkeypatch.setattr(known, "log_probability", asked)
    some, few = found(), asked.call_count
    monkeypatch.setattr(Beam, "_kept", all_read)
    for one, other in zip(some, found(), strict=True):
        assert (one.tokens, one.slots) == (other.tokens, other.slots)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-9)
    assert few < asked.call_count - few
