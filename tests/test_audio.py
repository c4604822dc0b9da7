"""Every container decodes to the same sound, every broken file is a named error, features equal Whisper's."""

import io
import struct
import tempfile
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from diffasr.audio import SAMPLE_RATE_HZ, load_audio, log_mel, split_at_silence, stream_blocks
from diffasr.errors import AudioError, OptionError

TONE_HZ = 440


def tone(seconds: float = 2.0, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    wave: np.ndarray = 0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate_hz)) / rate_hz)
    return wave.astype(np.float32)


def noisy_tone(seconds: float = 2.0) -> np.ndarray:
    samples = tone(seconds)
    samples += 0.01 * np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
    return samples


def sound_file(
    samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate_hz: int = SAMPLE_RATE_HZ
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def film_file(
    path: Path, codec: str | None, *, video: str | None = None, film_seconds: int = 2, seconds: int = 2, **options: str
) -> bytes:
    """Encode a stereo tone, a grey film, or both, with FFmpeg; the suffix of the path chooses the container."""
    rate_hz = 48_000
    with av.open(path, "w", options=options) as container:
        sound: Any = container.add_stream(codec, rate=rate_hz, layout="stereo") if codec else None
        picture: Any = container.add_stream(video, rate=10) if video else None
        if picture:
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
            for index in range(10 * film_seconds):
                image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index, np.uint8), format="rgb24")
                image.pts, image.time_base = index, Fraction(1, 10)
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        if sound:
            frame = av.AudioFrame.from_ndarray(np.stack([tone(seconds, rate_hz)] * 2), format="fltp", layout="stereo")
            frame.rate, frame.pts = rate_hz, 0
            fitted = av.AudioResampler(format=sound.format, layout="stereo", rate=rate_hz, frame_size=sound.frame_size)
            for part in [*fitted.resample(frame), *fitted.resample(None)]:
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path.read_bytes()


def loudest_hz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples)))) * SAMPLE_RATE_HZ / len(samples)


def assert_is_tone(samples: np.ndarray, seconds: float = 2.0) -> None:
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(seconds, abs=0.06), "codecs may pad by a frame or two"
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    assert loudest_hz(middle) == pytest.approx(TONE_HZ, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *[("WAV", subtype) for subtype in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW")],
        *[("OGG", "VORBIS"), ("OGG", "OPUS")],
        *[(kind, None) for kind in ("FLAC", "MP3", "AIFF", "W64", "CAF")],
    ],
)
def test_reads_what_libsndfile_knows(kind: str, subtype: str | None) -> None:
    assert_is_tone(load_audio(sound_file(tone(), kind, subtype)))


@pytest.mark.parametrize(
    "track",
    [
        *["m4a aac", "mp4 aac mpeg4", "mov pcm_s16le", "webm libopus", "webm libopus libvpx", "mkv flac"],
        *["opus libopus", "ogg libopus", "mp3 libmp3lame", "aac aac", "avi pcm_u8 mpeg4", "ts aac"],
    ],
)
def test_reads_what_ffmpeg_knows(tmp_path: Path, track: str) -> None:
    suffix, codec, *video = track.split()
    film_file(tmp_path / f"tone.{suffix}", codec, video=video[0] if video else None)
    assert_is_tone(load_audio(tmp_path / f"tone.{suffix}"))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_any_rate_gives_the_same_tone(rate_hz: int) -> None:
    assert_is_tone(load_audio(sound_file(tone(rate_hz=rate_hz), rate_hz=rate_hz)))


def test_resampling_in_blocks_equals_resampling_at_once() -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, 100_000).astype(np.float32)
    whole = soxr.resample(samples, 44_100, SAMPLE_RATE_HZ)
    blocks = load_audio(samples, rate_hz=44_100)
    assert len(blocks) == len(whole)
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_averaged(channels: int) -> None:
    samples = np.random.default_rng(2).uniform(-0.5, 0.5, (20_000, channels)).astype(np.float32)
    mean = samples.mean(axis=1)
    np.testing.assert_allclose(load_audio(sound_file(samples, subtype="FLOAT")), mean, atol=1e-6)
    np.testing.assert_allclose(load_audio(samples), mean, atol=1e-6)


def test_every_kind_of_source_gives_the_same_samples(tmp_path: Path) -> None:
    data = sound_file(noisy_tone(), "FLAC")
    path = tmp_path / "tone.raw"  # soundfile alone would trust this suffix
    path.write_bytes(data)
    expected = load_audio(data)
    with path.open("rb") as file, tempfile.TemporaryFile() as nameless, tempfile.SpooledTemporaryFile() as spooled:
        nameless.write(data)
        spooled.write(data)
        file.read(10)
        sources: list[Any] = [path, str(path), io.BytesIO(data), file, nameless, spooled]
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), expected)
        assert not file.closed, "the caller's file stays open"


def test_pipe_without_seek_is_read() -> None:
    data = sound_file(tone())

    class Pipe(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return data

    assert_is_tone(load_audio(Pipe()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float16", "float32", "float64", ">i2"])
def test_array_of_any_type_has_full_scale_one(kind: str) -> None:
    wave = tone()
    dtype = np.dtype(kind)
    scale = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max // (2 if dtype.kind == "u" else 1))
    array = (wave * scale + (128 if dtype.kind == "u" else 0)).astype(dtype)
    before = array.copy()
    np.testing.assert_allclose(load_audio(array), wave, atol=0.02 if dtype.itemsize == 1 else 5e-4)
    load_audio(array)[:] = 0  # a copy, even when there was nothing to convert
    np.testing.assert_array_equal(array, before)


def test_blocks_join_to_the_whole() -> None:
    data = sound_file(noisy_tone(5), "OGG", "VORBIS")
    blocks = list(stream_blocks(data))
    assert len(blocks) > 1
    assert all(len(block) for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), load_audio(data))


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("FLAC", None)])
def test_reading_in_blocks_equals_reading_at_once(
    kind: str, subtype: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = sound_file(noisy_tone(5), kind, subtype)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(load_audio(data), whole, atol=1e-6)
    assert capfd.readouterr().err == "", "decoders must not print"


def test_memory_stays_near_the_size_of_the_result(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(noisy_tone(10), 60), SAMPLE_RATE_HZ)
    tracemalloc.start()
    try:
        samples = load_audio(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert samples.nbytes == 600 * SAMPLE_RATE_HZ * 4
    assert peak < 1.3 * samples.nbytes


def test_limit_is_exact_and_stops_early() -> None:
    samples = np.zeros(SAMPLE_RATE_HZ * 2, np.float32)
    assert len(load_audio(samples, max_seconds=2)) == len(samples)
    with pytest.raises(AudioError, match=r"longer than max_seconds=1\.9.*raise that limit"):
        load_audio(samples, max_seconds=1.9)
    for without in (None, float("inf")):
        assert len(load_audio(samples, max_seconds=without)) == len(samples)


@pytest.mark.parametrize("options", [{"max_seconds": 0}, {"max_seconds": float("nan")}, {"rate_hz": 8_000}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"max_seconds|only arrays"):
        load_audio(sound_file(tone()), **options)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(0, np.float32), "zero samples"),
        (np.zeros((2, 16_000), np.float32), "transpose"),
        (np.zeros((3, 3), np.float32), "transpose"),
        (np.zeros((9, 0), np.float32), "transpose"),
        (np.zeros((4, 3, 2), np.float32), "transpose"),
        (np.zeros(9, np.int64), "int64 have no known full scale"),
        (np.zeros(9, bool), "bool have no known full scale"),
        (np.full(16_000, np.nan), "NaN or infinite"),
        (np.full(16_000, -np.inf), "NaN or infinite"),
        (np.full(16_000, 1e300), "NaN or infinite"),
        (np.full(16_000, 9_000.0), "divide by 32768"),
    ],
)
def test_bad_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(array)


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 2_000_000])
def test_impossible_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(AudioError, match=f"rate of {rate_hz} Hz"):
        load_audio(tone(), rate_hz=rate_hz)


def test_nan_is_found_at_its_second() -> None:
    samples = tone(4)
    samples[3 * SAMPLE_RATE_HZ + 500] = np.nan
    with pytest.raises(AudioError, match=r"<bytes> has a NaN or infinite sample, about second [23]\.\d"):
        load_audio(sound_file(samples, subtype="FLOAT"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"hello, this is no sound\n" * 50, "is not audio or video"),
        ("zeros.mp3", bytes(5_000), "is not audio or video"),
        ("header.wav", sound_file(np.zeros(0, np.float32)), "zero samples"),
    ],
)
def test_bad_content_is_an_error_that_names_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(path)
    assert str(path) in str(caught.value)


def test_playlist_cannot_make_ffmpeg_open_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(sound_file(tone()))
    with pytest.raises(AudioError, match="is not audio or video"):
        load_audio(b"ffconcat version 1.0\nfile 'secret.wav'\n")


def test_places_without_a_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav does not exist: check the path"):
        load_audio(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match="cannot be opened"):
        load_audio("null\0byte.wav")
    with pytest.raises(AudioError, match="'rb'"):
        load_audio(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="from a list"):
        load_audio([0.0, 0.1])  # type: ignore[arg-type]


def test_film_without_sound_says_so(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no sound track"):
        load_audio(film_file(tmp_path / "silent.mp4", None, video="mpeg4"))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "AIFF", "W64", "AU", "RF64"])
def test_truncated_sound_file_is_an_error(kind: str) -> None:
    data = sound_file(noisy_tone(5), kind)
    with pytest.raises(AudioError, match=r"truncated or damaged: decoding broke after second [123]\.\d\d"):
        load_audio(data[: len(data) * 6 // 10])


@pytest.mark.parametrize("track", ["mp4 aac", "webm libopus", "mkv aac", "aac aac"])
def test_truncated_film_is_an_error(tmp_path: Path, track: str) -> None:
    suffix, codec = track.split()
    # Fragments have their index at the front: without them, a cut mp4 cannot be opened at all.
    options: dict[str, Any] = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    data = film_file(tmp_path / f"cut.{suffix}", codec, seconds=5, **(options if suffix == "mp4" else {}))
    with pytest.raises(AudioError, match=r"decoding broke after second [23]\.\d\d"):
        load_audio(data[: len(data) * 6 // 10])


def test_film_whose_index_is_lost_is_an_error(tmp_path: Path) -> None:
    data = film_file(tmp_path / "cut.mp4", "aac")
    with pytest.raises(AudioError, match="lost its beginning or index"):
        load_audio(data[: len(data) // 2])


def test_sound_that_ends_before_the_picture_is_whole(tmp_path: Path) -> None:
    assert_is_tone(load_audio(film_file(tmp_path / "film.mkv", "aac", video="mpeg4", film_seconds=6)))


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0])
def test_placeholder_length_of_a_live_recorder_is_read_to_the_end(length: int) -> None:
    data = bytearray(sound_file(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", length)
    assert_is_tone(load_audio(bytes(data)))


def test_flac_without_a_length_is_read_to_the_end() -> None:
    data = bytearray(sound_file(tone(), "FLAC"))
    data[21] &= 0xF0  # the 36 bits of the total in STREAMINFO: zero means unknown
    data[22:26] = bytes(4)
    assert_is_tone(load_audio(bytes(data)))


def whisper_mel(audio: np.ndarray, mels: int, padded: bool) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    extractor: Any = WhisperFeatureExtractor(feature_size=mels)  # type: ignore[no-untyped-call]
    padding = "max_length" if padded else "do_not_pad"
    features = extractor(audio, sampling_rate=SAMPLE_RATE_HZ, padding=padding, return_tensors="np")
    return np.asarray(features.input_features[0])


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [480_000, 100_123, 16_000, 201])
@pytest.mark.parametrize("padded", [True, False])
def test_features_equal_whispers(mels: int, samples: int, padded: bool) -> None:
    audio = noisy_tone(30)[:samples] * np.linspace(0, 1, samples, dtype=np.float32)
    ours = log_mel(audio, mels=mels, padded=padded)
    assert ours.dtype == np.float32
    assert ours.shape == (mels, 3_000 if padded else samples // 160)
    np.testing.assert_allclose(ours, whisper_mel(audio, mels, padded), atol=1e-4)


def test_features_of_silence_are_flat_and_of_a_click_finite() -> None:
    click = np.zeros(16_000, np.float32)
    assert np.ptp(log_mel(click)) == 0
    click[8_000] = 1
    assert np.isfinite(log_mel(click)).all()


def test_features_refuse_what_they_cannot_take() -> None:
    with pytest.raises(AudioError, match="at least 160"):
        log_mel(np.zeros(159, np.float32))
    with pytest.raises(AudioError, match="shape"):
        log_mel(np.zeros((16_000, 2), np.float32))
    with pytest.raises(AudioError, match="do not fit"):
        log_mel(np.zeros(480_001, np.float32), padded=True)
    with pytest.raises(OptionError, match=r"1\.\.128"):
        log_mel(np.zeros(16_000, np.float32), mels=129)


@settings(deadline=None, max_examples=30)
@given(
    seconds=st.floats(0, 100),
    max_seconds=st.floats(1, 40),
    seed=st.integers(0, 9),
    loudness=st.sampled_from([0, 0.1, 1]),
)
def test_windows_partition_the_audio(seconds: float, max_seconds: float, seed: int, loudness: float) -> None:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE_HZ), dtype=np.float32)
    windows = split_at_silence(loudness * noise, max_seconds=max_seconds)
    edges = [0, *(end for _, end in windows)]
    assert [start for start, _ in windows] == edges[:-1]
    assert edges[-1] == len(noise)
    assert all(0 < end - start <= max_seconds * SAMPLE_RATE_HZ for start, end in windows)
    assert all(2 * (end - start) >= int(max_seconds * SAMPLE_RATE_HZ) for start, end in windows[:-1])


@pytest.mark.parametrize("gap_second", [20.5, 24.0, 29.4])
@pytest.mark.parametrize("floor", [0.0, 0.001])
def test_cut_lies_in_the_gap(gap_second: float, floor: float) -> None:
    audio = np.random.default_rng(3).standard_normal(45 * SAMPLE_RATE_HZ).astype(np.float32)
    start = round(gap_second * SAMPLE_RATE_HZ)
    end = start + SAMPLE_RATE_HZ * 3 // 10
    audio[start:end] *= floor
    (_, cut), _ = split_at_silence(audio)
    assert start + 1_000 <= cut <= end - 1_000


def test_short_audio_is_one_window() -> None:
    assert split_at_silence(np.zeros(480_000, np.float32)) == [(0, 480_000)]
    assert split_at_silence(np.zeros(0, np.float32)) == []
    with pytest.raises(OptionError, match=r"got 0\.5"):
        split_at_silence(np.zeros(10, np.float32), max_seconds=0.5)
