"""Clean sound in; the same words from another throat, room, microphone or line out.

Everything is drawn from the generator that is passed in: the same one gives the same sound.
"""

from dataclasses import dataclass, fields

import numpy as np
import soxr

from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How often and how much. Everything off is the sound as it was recorded."""

    speed: float = 0.0
    """Most that a clip is slowed or hurried, pitch and throat with it: 0.1 resamples by 0.9 to 1.1."""
    gain_db: float = 0.0
    """Most that it gets quieter or louder; never so loud that it clips."""
    room: float = 0.0
    """Share that is heard in a room: 0.1 to 0.5 s of reverberation."""
    noise: float = 0.0
    """Share with white, pink or brown noise, 5 to 30 dB below the voice."""
    codec: float = 0.0
    """Share that went through a telephone line: 300 to 3400 Hz, eight bits of mu-law."""
    joined: float = 0.0
    """How many more utterances, as a share, are made of several: up to 30 s of clips of one language in a row."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), 40.0 if field.name == "gain_db" else 1.0
            if not 0 <= value <= (0.5 if field.name == "speed" else most):
                raise RecipeError(f"augment: {field.name} is {value}, out of range")

    def __call__(self, samples: Samples, dice: np.random.Generator) -> Samples:
        """Change (N,) samples; the result may be shorter or longer."""
        draws = dice.random(5)  # all of them, always: one option does not move the dice of the next
        if self.speed > 0:
            rate_hz = SAMPLE_RATE_HZ * (1 + self.speed * (2 * draws[0] - 1))
            samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="MQ")
        if draws[1] < self.room:
            samples = in_room(samples, rt60=dice.uniform(0.1, 0.5), dice=dice)
        if draws[2] < self.noise:
            samples = samples + noise_for(samples, snr_db=dice.uniform(5, 30), dice=dice)
        if draws[3] < self.codec:
            samples = by_telephone(samples)
        if self.gain_db > 0:
            samples = samples * 10 ** (self.gain_db * (2 * draws[4] - 1) / 20)
        peak = float(np.abs(samples).max(initial=1.0))
        return np.asarray(samples / peak, np.float32)


def in_room(samples: Samples, *, rt60: float, dice: np.random.Generator) -> Samples:
    """Add a decaying tail of noise, ``rt60`` seconds to -60 dB, 2 to 14 dB weaker than the direct sound."""
    seconds = np.arange(int(rt60 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = dice.standard_normal(len(seconds)) * 10 ** (-3 * seconds / rt60)
    tail *= 10 ** (-dice.uniform(2, 14) / 20) / np.linalg.norm(tail)
    size = 1 << (len(samples) + len(tail)).bit_length()  # a power of two: the transform is fast
    echo = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return np.asarray(samples + echo[: len(samples)], np.float32)


def noise_for(samples: Samples, *, snr_db: float, dice: np.random.Generator) -> Samples:
    """Noise as long as ``samples`` and ``snr_db`` below them, its power falling as 1, 1/f or 1/f²."""
    size = 1 << len(samples).bit_length()
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).clip(20)
    white = np.fft.rfft(dice.standard_normal(size))
    noise = np.fft.irfft(white / hz ** dice.choice([0.0, 0.5, 1.0]), size)[: len(samples)]
    gain = np.linalg.norm(samples) / max(float(np.linalg.norm(noise)), 1e-9) * 10 ** (-snr_db / 20)
    return np.asarray(noise * gain, np.float32)


def by_telephone(samples: Samples) -> Samples:
    """Band-limited to 300 to 3400 Hz and coded in eight bits by the mu-law (ITU-T G.711, mu = 255)."""
    size = 1 << len(samples).bit_length()
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    band = np.fft.irfft(np.fft.rfft(samples, size) * ((hz > 300) & (hz < 3400)), size)[: len(samples)]
    loud = max(float(np.abs(band).max(initial=0.0)), 1e-9)
    coded = np.sign(band) * np.log1p(255 * np.abs(band / loud)) / np.log1p(255)
    kept = np.round(coded * 127) / 127
    return np.asarray(loud * np.sign(kept) * np.expm1(np.abs(kept) * np.log1p(255)) / 255, np.float32)
