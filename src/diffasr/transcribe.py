"""Recordings in, transcripts out: windows, batches, and their texts put together."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from diffasr.audio import SAMPLE_RATE_HZ, Samples, Source, load_audio, log_mel, split_at_silence
from diffasr.decode import Decoded, HeardWord, Show, decode
from diffasr.diffusion.sampler import Draft, SamplingOptions
from diffasr.errors import OptionError
from diffasr.model import checkpoint
from diffasr.model.checkpoint import Model
from diffasr.model.encoder import stack
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES, check_language
from diffasr.transcript import Segment, Transcript, Word

Watch = Callable[[int, int, str], None]
"""Called with the number of a window, that of a step, and the draft after it."""


class Transcriber:
    """A model that listens: made once, used for any number of recordings."""

    def __init__(self, model: Model, *, batch_seconds: float = 120.0) -> None:
        """batch_seconds: audio that is encoded and decoded together, padding included."""
        if batch_seconds <= 0:
            raise OptionError(f"batch_seconds must be above 0, got {batch_seconds}")
        self.model = model
        self.batch_seconds = batch_seconds

    @overload
    def transcribe(
        self,
        audio: Source,
        *,
        language: str | None = ...,
        options: SamplingOptions | None = ...,
        watch: Watch | None = ...,
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: list[Source],
        *,
        language: str | None = ...,
        options: SamplingOptions | None = ...,
        watch: Watch | None = ...,
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Source | list[Source],
        *,
        language: str | None = None,
        options: SamplingOptions | None = None,
        watch: Watch | None = None,
    ) -> Transcript | list[Transcript]:
        """Write down what is said.

        audio: a path, the bytes of a file, a binary file or samples at 16 kHz; a list of them gives a list, decoded in
        batches. language: a code of ``text.LANGUAGES``; None: the model finds it, window by window. watch: called with
        (window, step, draft) after each step. Raises AudioError, OptionError.
        """
        check_language(language)
        sources = audio if isinstance(audio, list) else [audio]
        samples = [load_audio(source) for source in sources]
        windows = [
            _Window(recording, start, end)
            for recording, sound in enumerate(samples)
            for start, end in split_at_silence(sound)
        ]
        decoded = self._decode_all(samples, windows, language, options or SamplingOptions(), watch)
        transcripts = [
            self._join(sound, [(w, d) for w, d in zip(windows, decoded, strict=True) if w.recording == n], language)
            for n, sound in enumerate(samples)
        ]
        return transcripts if isinstance(audio, list) else transcripts[0]

    def _decode_all(
        self,
        samples: Sequence[Samples],
        windows: Sequence["_Window"],
        language: str | None,
        options: SamplingOptions,
        watch: Watch | None,
    ) -> list[Decoded]:
        """Decode windows in batches of like length; the answers in the order of ``windows``."""
        decoded: list[Decoded | None] = [None] * len(windows)
        order = sorted(range(len(windows)), key=lambda n: windows[n].size)
        for numbers in self._batches(order, windows):
            speech = self.hear([samples[windows[n].recording][windows[n].start : windows[n].end] for n in numbers])
            known = None if language is None else torch.full((len(numbers),), list(LANGUAGES).index(language))
            show = None if watch is None else self._shower(watch, numbers)
            for n, result in zip(numbers, decode(self.model, speech, known, options, show), strict=True):
                decoded[n] = result
        return [d for d in decoded if d is not None]

    def _batches(self, order: Sequence[int], windows: Sequence["_Window"]) -> Iterator[list[int]]:
        batch: list[int] = []
        for n in order:
            if batch and (len(batch) + 1) * windows[n].size > self.batch_seconds * SAMPLE_RATE_HZ:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    @torch.inference_mode()
    def hear(self, clips: Sequence[Samples]) -> Speech:
        """Features and encoder of windows, each (N,); a clip too short for one feature frame is filled up."""
        ears = self.model.config.encoder
        shortest = SAMPLE_RATE_HZ // 10
        filled = [np.pad(clip, (0, max(0, shortest - len(clip)))) for clip in clips]
        mels = [torch.from_numpy(log_mel(c, mels=ears.mels, padded=ears.mode == "padded")) for c in filled]
        batch, lengths = stack(mels)
        like = self.model.network.encoder.conv1.weight
        speech = self.model.network.hear(batch.to(like.device, like.dtype), lengths.to(like.device))
        if ears.mode == "padded":
            counts = [-(-len(clip) // 320) for clip in filled]  # 50 frames a second
            real = torch.tensor(counts, device=like.device)
            speech = Speech(frames=speech.frames[:, : int(real.max())], lengths=real)
        return speech

    def _timed(self, words: Sequence[HeardWord], window: "_Window") -> tuple[Word, ...]:
        """Audio tokens as seconds of the recording, none of them past the window's end."""
        slot = 0.02 * 2**self.model.config.projector.strides  # encoder frames are 20 ms
        start, end = window.start / SAMPLE_RATE_HZ, window.end / SAMPLE_RATE_HZ
        return tuple(
            Word(
                word=w.word,
                start=min(start + slot * w.first, end),
                end=min(start + slot * (w.last + 1), end),
                probability=w.probability,
            )
            for w in words
        )

    def _shower(self, watch: Watch, numbers: Sequence[int]) -> Show:
        def show(draft: Draft, rows: list[int]) -> None:
            for place, row in enumerate(rows):
                watch(numbers[row], draft.step, self.model.tokenizer.decode(draft.tokens[place].tolist()))

        return show

    def _join(self, sound: Samples, parts: Sequence[tuple["_Window", Decoded]], language: str | None) -> Transcript:
        """The windows of one recording as a transcript, silent ones left out."""
        segments = tuple(
            Segment(
                start=window.start / SAMPLE_RATE_HZ,
                end=window.end / SAMPLE_RATE_HZ,
                text=result.text,
                language=result.language,
                avg_logprob=result.avg_logprob,
                steps=result.steps,
                words=self._timed(result.words, window),
            )
            for window, result in parts
            if result.text
        )
        main, probability = _main_language(parts)
        return Transcript(
            text=_joined(segments),
            language=language or main,
            language_probability=None if language else probability,
            duration=len(sound) / SAMPLE_RATE_HZ,
            segments=segments,
            model=self.model.config.name,
        )


@dataclass(frozen=True)
class _Window:
    """A stretch of one recording, in samples."""

    recording: int
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def _main_language(parts: Sequence[tuple[_Window, Decoded]]) -> tuple[str, float]:
    """The language of most of the time, and the model's mean probability of it there."""
    time = dict.fromkeys(LANGUAGES, 0)
    sure = dict.fromkeys(LANGUAGES, 0.0)
    for window, result in parts:
        time[result.language] += window.size
        sure[result.language] += window.size * result.language_probability
    main = max(time, key=time.__getitem__)
    return main, sure[main] / max(1, time[main])


def _joined(segments: Sequence[Segment]) -> str:
    """Texts in a row: a space between them, none where a Mandarin one follows another."""
    out, before = "", ""  # of a recording without words, the empty text
    for segment in segments:
        out += ("" if not out or before == segment.language == "zh" else " ") + segment.text
        before = segment.language
    return out


def load(name: str | os.PathLike[str] = "mini", *, device: str = "cpu", revision: str | None = None) -> Transcriber:
    """A transcriber of the embedded ``mini``, of a checkpoint folder, or of a hub id.

    device: such as "cpu" or "cuda"; revision: of a hub id. Raises ModelError, DownloadError.
    """
    return Transcriber(checkpoint.load(name, device=device, revision=revision))
