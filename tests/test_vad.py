"""The detector says what Silero's own says, however the sound is cut into blocks."""

import warnings
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffasr import vad
from diffasr.audio import Samples, load_audio
from diffasr.errors import OptionError
from diffasr.evaluate.quiet import KINDS, make
from diffasr.vad import FRAME, SpeechDetector

WEIGHTS = Path(find_spec("silero_vad").origin).parent / "data" / "silero_vad.jit"  # type: ignore[union-attr,arg-type]
SAMPLES = sorted((Path(__file__).parent.parent / "samples").glob("*.opus"))


def probabilities(sound: Samples) -> Samples:
    detector = SpeechDetector()
    return np.concatenate((detector.hear(sound), detector.finish()))


def test_it_says_what_the_package_says() -> None:
    sound = load_audio(SAMPLES[0])[: 60 * FRAME]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        theirs = torch.jit.load(WEIGHTS)
    with torch.inference_mode():
        expected = [theirs(torch.from_numpy(frame), 16_000).item() for frame in sound.reshape(-1, FRAME)]
    found = probabilities(sound)
    assert max(expected) > 0.9
    np.testing.assert_allclose(found, expected, atol=1e-4)


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 20_000), max_size=6), length=st.integers(1, 20_000))
def test_blocks_do_not_matter(cuts: list[int], length: int) -> None:
    sound = load_audio(SAMPLES[1])[10_000 : 10_000 + length]
    edges = [0, *sorted(min(cut, length) for cut in cuts), length]
    detector = SpeechDetector()
    parts = [detector.hear(sound[a:b]) for a, b in pairwise(edges)]
    found = np.concatenate((*parts, detector.finish()))
    assert len(found) == -(-length // FRAME), "a probability for each frame, the last one filled up"
    np.testing.assert_allclose(found, probabilities(sound), atol=1e-5)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.stem)
def test_people_are_heard(path: Path) -> None:
    assert probabilities(load_audio(path)).max() > 0.95


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "chord"])
def test_nobody_is_heard_in_noise(kind: str) -> None:
    assert probabilities(make(kind, 3)).max() < 0.5


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    vad._network.cache_clear()
    SpeechDetector()
    assert torch.get_num_threads() == before


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vad, "find_spec", lambda name: None)
    vad._network.cache_clear()
    with pytest.raises(OptionError, match="pip install silero-vad"):
        SpeechDetector()
    vad._network.cache_clear()
