"""Augmentation: every option changes the sound by as much as it says, and the same dice give the same sound."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.errors import RecipeError
from diffasr.train.augment import Augment, by_telephone, in_room, noise_for

SURE = {"speed": 0.2, "gain_db": 12.0, "room": 1.0, "noise": 1.0, "codec": 1.0}
"""Each option so that it acts on every clip; ``joined`` does not change a clip: see test_recordings."""


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def voice(seconds: float = 0.5, seed: int = 9) -> Samples:
    return dice(seed).normal(0, 0.05, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def tone(hz: float, seconds: float = 1.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ)).astype(
        np.float32
    )


def loudest_hz(samples: Samples) -> float:
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * SAMPLE_RATE_HZ / len(samples))


def test_everything_off_is_the_sound_itself() -> None:
    assert np.array_equal(Augment()(voice(), dice()), voice())


@pytest.mark.parametrize(("name", "value"), SURE.items())
def test_each_option_changes_the_sound_as_its_dice_fall(name: str, value: float) -> None:
    change, before = Augment(**{name: value}), voice()
    first, again, other = (change(before, dice(seed)) for seed in (1, 1, 2))
    assert np.array_equal(before, voice()), "what was passed in stays"
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, before)
    if name != "codec":  # a telephone line has no dice
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["room", "noise", "codec"])
def test_a_share_is_a_share_of_the_clips(name: str) -> None:
    change, before = Augment(**{name: 0.3}), voice(0.05)
    hit = [not np.array_equal(change(before, dice(seed)), before) for seed in range(300)]
    assert np.mean(hit) == pytest.approx(0.3, abs=0.08)
    louder = Augment(**{name: 0.3, "gain_db": 6.0})
    plain = Augment(gain_db=6.0)
    both = [not np.array_equal(louder(before, dice(seed)), plain(before, dice(seed))) for seed in range(300)]
    assert both == hit, "another option does not choose other clips"


@given(st.integers(0, 10**6), st.sampled_from([{}, SURE, {"gain_db": 40.0}, {"noise": 1.0}, {"room": 1.0}]))
def test_nothing_is_ever_louder_than_one(seed: int, options: dict[str, float]) -> None:
    loud = np.sign(voice(0.1, seed)) * 0.999
    changed = Augment(**options)(loud.astype(np.float32), dice(seed))
    assert np.abs(changed).max() <= 1.0
    assert np.isfinite(changed).all()


@pytest.mark.parametrize("options", [SURE, {"noise": 1.0}, {"codec": 1.0}], ids=str)
def test_silence_stays_silent(options: dict[str, float]) -> None:
    changed = Augment(**options)(np.zeros(4000, np.float32), dice())
    assert np.abs(changed).max() < 1e-8


@pytest.mark.parametrize("seed", range(5))
def test_speed_takes_pitch_and_length_with_it(seed: int) -> None:
    changed = Augment(speed=0.1)(tone(440.0), dice(seed))
    factor = 1 + 0.1 * (2 * dice(seed).random(5)[0] - 1)
    assert 0.9 <= factor <= 1.1
    assert len(changed) == pytest.approx(SAMPLE_RATE_HZ / factor, abs=2)
    assert loudest_hz(changed) == pytest.approx(440 * factor, abs=2)


def test_gain_is_of_so_many_decibels_at_most() -> None:
    before = voice()
    changes = [20 * np.log10(np.abs(Augment(gain_db=6.0)(before, dice(s))).max() / np.abs(before).max())
               for s in range(50)]  # fmt: skip
    assert max(np.abs(changes)) <= 6.0001
    assert min(changes) < -3 and max(changes) > 3


@given(st.floats(-5, 40), st.integers(0, 10**6), st.integers(200, 20_000))
def test_noise_is_as_far_below_the_voice_as_asked(snr_db: float, seed: int, size: int) -> None:
    samples = voice(2.0)[:size]
    noise = noise_for(samples, snr_db=snr_db, dice=dice(seed))
    assert noise.shape == samples.shape
    assert 20 * np.log10(np.linalg.norm(samples) / np.linalg.norm(noise)) == pytest.approx(snr_db, abs=0.01)


def test_noise_has_three_colours() -> None:
    low = []
    for seed in range(30):
        power = np.abs(np.fft.rfft(noise_for(voice(2.0), snr_db=10, dice=dice(seed)))) ** 2
        low.append(power[: len(power) // 8].sum() / power.sum())
    kinds = [(0.0, 0.2), (0.5, 0.9), (0.93, 1.0)]  # white has an eighth there, brown almost all
    assert all(any(a < share < b for share in low) for a, b in kinds)
    assert all(any(a < share < b for a, b in kinds) for share in low)


def test_a_room_adds_a_tail_that_dies_away() -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[100] = 1.0
    for seed in range(5):
        tail = in_room(click, rt60=0.3, dice=dice(seed)) - click
        assert len(tail) == len(click)
        assert np.abs(tail[:100]).max() < 1e-6, "no echo before the sound"
        assert -14 <= 20 * np.log10(np.linalg.norm(tail)) <= -2
        start, later = (np.linalg.norm(tail[100 + at : 100 + at + 400]) for at in (0, 2400))
        assert 20 * np.log10(later / start) == pytest.approx(-30, abs=3), "0.15 of 0.3 s is half of 60 dB"


def test_a_telephone_passes_its_band_in_eight_bits() -> None:
    for hz, passes in ((150.0, False), (1000.0, True), (5000.0, False)):
        heard = by_telephone(tone(1000.0) + tone(hz) if hz != 1000.0 else tone(hz))
        power = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) ** 2
        share = power[round(hz) - 2 : round(hz) + 3].sum() / power.sum()
        assert share > 0.99 if passes else share < 1e-3
    line = by_telephone(voice())
    assert len(np.unique(line)) <= 255
    assert len(np.unique(line)) > 64
    assert len(line) == len(voice())


@pytest.mark.parametrize(
    ("options", "name"),
    [({"speed": 0.6}, "speed"), ({"gain_db": 41.0}, "gain_db"), ({"room": 1.1}, "room"), ({"noise": -0.1}, "noise"),
     ({"codec": float("nan")}, "codec"), ({"joined": 2.0}, "joined")],
)  # fmt: skip
def test_what_is_out_of_range_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(RecipeError, match=f"augment: {name} is "):
        Augment(**options)
