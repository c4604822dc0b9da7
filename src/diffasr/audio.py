"""Sound in, numbers out: any recording to 16 kHz mono samples, samples to Whisper's log-mel features.

In: a path, bytes, an open binary file or an array. Out: float32 samples, nominally in [-1, 1].
libsndfile decodes what it knows (wav, flac, ogg, mp3, ...), FFmpeg the rest (m4a, mp4, webm, ...), soxr
resamples. All of it runs block by block: a long or hostile file never sits in memory twice.

A broken recording is an error, never a short transcript. What counts as broken: the decoder fails, or more
than ``_TOLERANCE_SECONDS`` of the length that the file itself declares are not there. Ogg, raw AAC, AVI and
CAF declare none that can be trusted, and live recorders write a placeholder: there, what is present counts.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from diffasr.errors import AudioError, OptionError

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

Samples: TypeAlias = npt.NDArray[np.float32]
Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[Any]
_Block: TypeAlias = tuple[Samples, int]  # mono samples and their rate in Hz

SAMPLE_RATE_HZ = 16_000
MAX_SECONDS = 6 * 3600.0
"""Default limit on a recording: it decodes to 1.4 GB, and a small hostile file can claim far more."""
WINDOW_SECONDS = 30.0

_BLOCK_FRAMES = 16_384
_TOGETHER = 16
"""Feature frames at a time: the product of more would be shared among BLAS's threads, which then spin for a while."""
_RATES_HZ = range(1_000, 1_000_001)
_MELS = range(1, 129)  # with 150, some triangles fall between two bins and stay empty
_LOUDEST = 16.0  # honest float audio overshoots 1 by a little; integers stored as floats by thousands
_TOLERANCE_SECONDS = 0.5
_UNKNOWN_BYTES = 2**31 - 2**16  # from here up, a WAV length is a live recorder's placeholder
_UNKNOWN_FRAMES = 2**62
_FULL_SCALE = {"uint8": 2**7, "int16": 2**15, "int32": 2**31, "float16": 1, "float32": 1, "float64": 1}
# Playlists (hls, concat, dash) are left out on purpose: they would make FFmpeg open files of the sender's choice.
_CONTAINERS = "mov,matroska,ogg,mp3,aac,wav,w64,flac,aiff,caf,au,avi,asf,flv,mpegts,mpeg,amr,ac3,eac3,wv,ape"
_DECLARES_LENGTH = ("mov", "matroska")  # elsewhere FFmpeg guesses the length from the bit rate


def load_audio(source: Source, *, rate_hz: int | None = None, max_seconds: float | None = MAX_SECONDS) -> Samples:
    """Read a whole recording; return a new (N,) float32 array at ``SAMPLE_RATE_HZ``.

    Arguments, units and errors are those of ``stream_blocks``.
    """
    samples = bytearray()  # grows in place, so that the parts and the whole never exist side by side
    for block in stream_blocks(source, rate_hz=rate_hz, max_seconds=max_seconds):
        samples += block.data
    return np.frombuffer(samples, dtype=np.float32)


def stream_blocks(
    source: Source, *, rate_hz: int | None = None, max_seconds: float | None = MAX_SECONDS
) -> Iterator[Samples]:
    """Yield a recording as (n,) float32 mono blocks at ``SAMPLE_RATE_HZ``, n >= 1, while it is being decoded.

    source: a path, the bytes of a file, a binary file (read from its start), or an array of shape (N,) or
    (N, C): integers are scaled to [-1, 1], floats are taken as they are. Channels are averaged.
    rate_hz: the rate of an array (default: already ``SAMPLE_RATE_HZ``); files carry their own.
    max_seconds: refuse anything longer; None for no limit.
    Raises AudioError for whatever is not a whole recording, OptionError for a bad option, both on iteration.
    """
    if max_seconds is not None and not max_seconds > 0:
        raise OptionError(f"max_seconds must be above 0, or None for no limit, got {max_seconds}")
    name = _name_of(source)
    if isinstance(source, np.ndarray):
        blocks = _array_blocks(source, SAMPLE_RATE_HZ if rate_hz is None else rate_hz)
        yield from _checked(_resampled(blocks, name), name, max_seconds)
        return
    if rate_hz is not None:
        raise OptionError(f"rate_hz={rate_hz} was given for {name}: only arrays need it, a file carries its own")
    with _opened(source, name) as file:
        yield from _checked(_resampled(_file_blocks(file, name), name), name, max_seconds)


def log_mel(audio: Samples, *, mels: int = 80, padded: bool = False) -> Samples:
    """Turn (N,) samples at ``SAMPLE_RATE_HZ`` into Whisper's features, (mels, frames) float32, 100 frames a second.

    padded: add zeros up to ``WINDOW_SECONDS`` first, as Whisper was trained; otherwise frames = N // hop.
    Source: arXiv:2212.04356 section 2.2, and ``WhisperFeatureExtractor``, which a test compares.
    Raises AudioError for the wrong shape or length, OptionError for mels out of range.
    """
    fft_size, hop = 400, 160  # 25 ms and 10 ms
    limit = int(WINDOW_SECONDS * SAMPLE_RATE_HZ)
    if audio.ndim != 1 or len(audio) < hop:
        raise AudioError(f"log_mel needs one channel of at least {hop} samples (10 ms), got shape {audio.shape}")
    if padded:
        if len(audio) > limit:
            raise AudioError(f"{len(audio)} samples do not fit in {limit}: cut them with split_at_silence first")
        audio = np.pad(audio, (0, limit - len(audio)))
    frames = len(audio) // hop
    # Double precision costs a few milliseconds a window, and bins 80 dB below the peak stay exact.
    mirrored = np.pad(audio.astype(np.float64), fft_size // 2, mode="reflect")
    slices = np.lib.stride_tricks.sliding_window_view(mirrored, fft_size)[::hop][:frames]  # (frames, fft_size)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
    filters, heard = _mel_filters(mels, fft_size // 2 + 1), np.empty((mels, frames))
    for start in range(0, frames, _TOGETHER):
        spectrum = np.fft.rfft(slices[start : start + _TOGETHER] * hann)
        heard[:, start : start + _TOGETHER] = filters @ (spectrum.real**2 + spectrum.imag**2).T
    loudness = np.log10(np.maximum(heard, 1e-10))  # (mels, frames)
    scaled: Samples = ((np.maximum(loudness, loudness.max() - 8) + 4) / 4).astype(np.float32)
    return scaled


def split_at_silence(audio: Samples, *, max_seconds: float = WINDOW_SECONDS) -> list[tuple[int, int]]:
    """Cut (N,) samples into windows of at most ``max_seconds``: (start_sample, end_sample), no gap, no overlap.

    Each window ends in the middle of the quietest 200 ms of its last 10 s (its last half, if that is shorter):
    long enough to contain a pause, late enough to keep the windows few. No sound, no windows.
    Raises OptionError when max_seconds is below 1.
    """
    if max_seconds < 1:
        raise OptionError(f"max_seconds must be at least 1, got {max_seconds}")
    longest, pause = int(max_seconds * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ // 5
    search = min(10 * SAMPLE_RATE_HZ, longest // 2)
    windows = []
    start = 0
    while len(audio) - start > longest:
        tail = audio[start + longest - search : start + longest].astype(np.float64)
        energy = np.concatenate(([0.0], np.cumsum(tail**2)))
        quietest = int(np.argmin(energy[pause:] - energy[:-pause]))
        end = start + longest - search + quietest + pause // 2
        windows.append((start, end))
        start = end
    return [*windows, (start, len(audio))] if len(audio) else []


@cache
def _mel_filters(mels: int, bins: int) -> npt.NDArray[np.float64]:
    """Triangles of equal area, (mels, bins): linear in pitch up to 1 kHz, logarithmic above.

    Source: Slaney, Auditory Toolbox version 2, Interval Research report 1998-010.
    """
    if mels not in _MELS:
        raise OptionError(f"mels must be in 1..128 (Whisper has 80 or 128), got {mels}")
    top_hz = SAMPLE_RATE_HZ / 2
    linear_hz, bend_hz, bend_mel, octaves = 200 / 3, 1000.0, 15.0, 27 / np.log(6.4)
    pitch = np.linspace(0, bend_mel + octaves * np.log(top_hz / bend_hz), mels + 2)
    edges_hz = np.where(pitch < bend_mel, pitch * linear_hz, bend_hz * np.exp((pitch - bend_mel) / octaves))
    left, peak, right = (edges_hz[i : mels + i, None] for i in range(3))  # each (mels, 1)
    bins_hz = np.linspace(0, top_hz, bins)
    triangles = np.minimum((bins_hz - left) / (peak - left), (right - bins_hz) / (right - peak)).clip(min=0)
    filters: npt.NDArray[np.float64] = triangles * 2 / (right - left)
    filters.setflags(write=False)  # the cache hands the same array to everybody
    return filters


class _Reader:
    """What the decoders need of a file, without the ``name`` that both misread (.raw, None, descriptors)."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _name_of(source: Source) -> str:
    """Say in an error message which source is meant."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | np.ndarray):
        return f"<{type(source).__name__}>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<file>"


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Give a seekable, non-empty binary file at its start; close it only if it was opened here."""
    if isinstance(source, str | os.PathLike):
        if Path(source).is_dir():
            raise AudioError(f"{name} is a folder: pass one of the files in it")
        try:
            file: BinaryIO = Path(source).open("rb")  # noqa: SIM115 - closed below
        except FileNotFoundError as error:
            raise AudioError(f"{name} does not exist: check the path, seen from {Path.cwd()}") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise AudioError(f"{name!r} cannot be opened: {error}") from error
    elif isinstance(source, bytes):
        file = io.BytesIO(source)
    elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        file = source
    else:
        kind = type(source).__name__
        raise AudioError(f"audio cannot be read from a {kind}: pass a path, bytes, a file opened with 'rb' or an array")
    try:
        seekable = file if file.seekable() else io.BytesIO(file.read())
        if seekable.seek(0, os.SEEK_END) == 0:
            raise AudioError(f"{name} is empty (0 bytes): record or copy it again")
        seekable.seek(0)
        yield seekable
    finally:
        if file is not source:
            file.close()


def _file_blocks(file: BinaryIO, name: str) -> Iterator[_Block]:
    """Decode with libsndfile if it knows the format and finds a length, with FFmpeg otherwise."""
    try:
        sound = soundfile.SoundFile(_Reader(file))
    except soundfile.SoundFileError:
        sound = None
    if sound is not None and 0 < sound.frames < _UNKNOWN_FRAMES:
        with sound:
            yield from _soundfile_blocks(sound, name)
        return
    file.seek(0)
    yield from _av_blocks(file, name)


def _soundfile_blocks(sound: soundfile.SoundFile, name: str) -> Iterator[_Block]:
    declared = sound.frames / sound.samplerate * _header_excess(sound.extra_info)
    # read() would seek to where it already is after every block: mpg123 then decodes twice and prints errors.
    sound.seekable = lambda: False
    heard_frames = 0
    while True:
        try:
            samples = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)  # (n, C)
        except soundfile.SoundFileError as error:
            raise _broken(name, heard_frames / sound.samplerate, str(error)) from error
        if len(samples) == 0:
            break
        heard_frames += len(samples)
        yield _mono(samples), sound.samplerate
    _check_length(name, heard_frames / sound.samplerate, declared)


def _header_excess(log: str) -> float:
    """Return how many times more sound the header declares than the file holds; 1 if all is there.

    log: ``SoundFile.extra_info``. libsndfile silently corrects a data length that runs past the end of the
    file, but notes ``data : 160000 (should be 96000)``, under other names for AIFF, AU, W64 and RF64.
    """
    note = re.search(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    declared, present = map(int, note.groups()) if note else (1, 1)
    return declared / present if 0 < present < declared < _UNKNOWN_BYTES else 1.0


def _av_blocks(file: BinaryIO, name: str) -> Iterator[_Block]:
    import av  # 15 MB that most recordings do not need

    with _av_container(file, name) as container:
        track = container.streams.best("audio")
        if track is None:
            raise AudioError(f"{name} has no sound track: nothing to transcribe")
        end = 0.0
        try:
            for packet in container.demux():  # of every track: a film may go on when its sound has ended
                if packet.pts is not None and packet.stream.type in ("audio", "video"):
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                frames = packet.decode() if packet.stream.index == track.index else []
                yield from (_frame_block(frame) for frame in frames if isinstance(frame, av.AudioFrame))
        except av.FFmpegError as error:
            raise _broken(name, end, error.strerror or str(error)) from error
        if container.duration and container.format.name.startswith(_DECLARES_LENGTH):
            _check_length(name, end, container.duration / av.time_base)


def _av_container(file: BinaryIO, name: str) -> "InputContainer":
    import av

    try:
        return av.open(_Reader(file), mode="r", options={"format_whitelist": _CONTAINERS}, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise AudioError(
            f"{name} is not audio or video that can be read, or it has lost its beginning or index"
            f" ({error.strerror}): check that it plays, or convert it to WAV"
        ) from error


def _frame_block(frame: "AudioFrame") -> _Block:
    samples = frame.to_ndarray()  # (C, n) planar, (1, n * C) packed
    columns = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)  # (n, C)
    return _mono(columns), frame.sample_rate


def _array_blocks(samples: npt.NDArray[Any], rate_hz: int) -> Iterator[_Block]:
    match samples.shape:
        case (_,):
            samples = samples[:, None]
        case (frames, channels) if channels == 1 or 1 < channels < frames:
            pass
        case shape:
            raise AudioError(f"an array must be (N,) or (N, C) with C < N, got {shape}: transpose one that is (C, N)")
    if samples.dtype.name not in _FULL_SCALE:
        raise AudioError(f"samples of type {samples.dtype} have no known full scale: use {', '.join(_FULL_SCALE)}")
    for start in range(0, len(samples), _BLOCK_FRAMES):
        yield _mono(samples[start : start + _BLOCK_FRAMES]), rate_hz


def _mono(samples: npt.NDArray[Any]) -> Samples:
    """Average (n, C) samples of a type in ``_FULL_SCALE`` over channels: (n,) with full scale at 1."""
    full_scale = _FULL_SCALE[samples.dtype.name]
    zero = full_scale if samples.dtype.kind == "u" else 0
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused by name in _checked
        mono: Samples = ((samples.astype(np.float32) - np.float32(zero)) / np.float32(full_scale)).mean(axis=1)
    return mono


def _resampled(blocks: Iterable[_Block], name: str) -> Iterator[Samples]:
    """Bring every block to ``SAMPLE_RATE_HZ``; the rate may change on the way, as it does in joined streams."""
    for rate_hz, run in groupby(blocks, key=itemgetter(1)):
        if rate_hz not in _RATES_HZ:
            raise AudioError(f"{name} has a rate of {rate_hz} Hz: expected {_RATES_HZ.start} to {_RATES_HZ.stop - 1}")
        if rate_hz == SAMPLE_RATE_HZ:
            yield from (samples for samples, _ in run)
            continue
        resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        for samples, _ in run:
            yield resampler.resample_chunk(samples)
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _checked(blocks: Iterable[Samples], name: str, max_seconds: float | None) -> Iterator[Samples]:
    """Pass on blocks that are sound, within the limit; drop those without samples."""
    total = 0
    for block in blocks:
        if len(block) == 0:
            continue
        peak = float(np.abs(block).max())
        if not peak <= _LOUDEST:
            found = f"a sample of {peak:g}, full scale being 1" if np.isfinite(peak) else "a NaN or infinite sample"
            remedy = "scale floats to [-1, 1] (int16: divide by 32768)" if np.isfinite(peak) else "export it again"
            raise AudioError(f"{name} has {found}, about second {total / SAMPLE_RATE_HZ:.2f}: {remedy}")
        total += len(block)
        if max_seconds is not None and total > max_seconds * SAMPLE_RATE_HZ + 0.5:
            raise AudioError(f"{name} is longer than max_seconds={max_seconds:g}: raise that limit, or cut the file")
        yield block
    if total == 0:
        raise AudioError(f"{name} has zero samples of sound: record or export it again")


def _check_length(name: str, heard: float, declared: float) -> None:
    if declared - heard > _TOLERANCE_SECONDS:
        raise _broken(name, heard, f"the file declares {declared:.2f} s")


def _broken(name: str, second: float, reason: str) -> AudioError:
    return AudioError(
        f"{name} is truncated or damaged: decoding broke after second {second:.2f} ({reason})."
        " Copy or download it again; to keep what is there, convert it to WAV"
    )
