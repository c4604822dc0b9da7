"""Recordings in, transcripts out: windows, batches, and their texts put together."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from diffasr import loading
from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, Source, log_mel
from diffasr.decodable import decodable
from diffasr.decode import Decoded, Draft, Guide, Show, decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.guard import another_try, is_loop, no_speech_probability
from diffasr.hotwords import Hotwords, Wanted, checked
from diffasr.model.loaded import Model, Precision
from diffasr.seams import Piece, sew
from diffasr.text import LANGUAGES, check_language
from diffasr.transcript import Gap, Segment, Transcript, Word, joined, put_together
from diffasr.windows import ListenOptions, Window, Windows
from diffasr.words import HeardWord, word_times

if TYPE_CHECKING:
    from diffasr.redo import Keep

Watch = Callable[[int, int, str], None]
"""Called with the number of a window, that of a step, and the draft after it."""

_POOL = 4  # batches that are read before they are decoded: more of them have windows of like length


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
        listen: ListenOptions | None = ...,
        hotwords: Wanted = ...,
        watch: Watch | None = ...,
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        audio: list[Source],
        *,
        language: str | None = ...,
        options: SamplingOptions | None = ...,
        listen: ListenOptions | None = ...,
        hotwords: Wanted = ...,
        watch: Watch | None = ...,
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Source | list[Source],
        *,
        language: str | None = None,
        options: SamplingOptions | None = None,
        listen: ListenOptions | None = None,
        hotwords: Wanted = None,
        watch: Watch | None = None,
    ) -> Transcript | list[Transcript]:
        """Write down what is said.

        audio: a path, the bytes of a file, a binary file or samples at 16 kHz; a list of them gives a list, decoded in
        batches. language: a code of ``text.LANGUAGES``; None: the model finds it, window by window. hotwords: words to
        prefer where the sound speaks for them, a list or ``Hotwords``. watch: called with (window, step, draft) after
        each step. Raises AudioError, OptionError.
        """
        request = _request(language, options, listen, hotwords, watch)
        recordings = [Windows(source, request.listen) for source in (audio if isinstance(audio, list) else [audio])]
        pieces: list[list[Piece]] = [[] for _ in recordings]
        for number, piece in self._pieces(recordings, request, pool_seconds=_POOL * self.batch_seconds):
            pieces[number].append(piece)
        name = self.model.config.name
        transcripts = [
            put_together(mine, language=language, seconds=recording.seconds, model=name)
            for mine, recording in zip(pieces, recordings, strict=True)
        ]
        return transcripts if isinstance(audio, list) else transcripts[0]

    def stream(
        self,
        audio: Source,
        *,
        language: str | None = None,
        options: SamplingOptions | None = None,
        listen: ListenOptions | None = None,
        hotwords: Wanted = None,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> Iterator[Segment]:
        """Yield the segments of one recording while it is still being read, in the order of time.

        Segments come a batch at a time: a smaller ``batch_seconds`` brings them earlier. Arguments and errors are those
        of ``transcribe``; on_gap: called with what ``Transcript.gaps`` would list.
        """
        request = _request(language, options, listen, hotwords)
        for _, piece in self._pieces([Windows(audio, request.listen)], request, pool_seconds=self.batch_seconds):
            if isinstance(piece, Segment):
                yield piece
            elif on_gap is not None:
                on_gap(piece)

    def redo(self, result: Transcript, audio: Source, *, keep: "Keep", steps: int = 8) -> Transcript:
        """Write the segments of ``result`` anew that hold a word of ``keep``, around what is kept, by the sound.

        audio: what ``result`` is of. keep: (segment, word), or (segment, first word, last word), each from 0, to the
        text that stands there: put right, or confirmed. It is in the new transcript verbatim; other segments are as
        they were. steps: model calls a segment, at most. What was kept before is kept again only if it is given again.
        Raises AudioError, OptionError.
        """
        from diffasr.redo import cut_out, fixes, pieces_of, rewrite

        wanted, segments = fixes(result, keep), list(result.segments)
        numbers = sorted(wanted)
        for number, samples in zip(numbers, cut_out(audio, [segments[n] for n in numbers]), strict=True):
            old = segments[number]
            pieces = pieces_of(old, wanted[number], self.model.tokenizer)
            new = rewrite(self.model, self.hear([samples]), old.language, pieces, steps=steps)
            start = round(old.start * SAMPLE_RATE_HZ)
            end = start + len(samples)
            window = Window(start=start, end=end, samples=samples, speech=((start, end),), speech_probability=1.0)
            segments[number] = replace(
                old, text=new.text, words=self._timed(new.words, window), avg_logprob=new.avg_logprob, steps=new.steps,
                alternatives=(),
            )  # fmt: skip
        return replace(result, text=joined(segments), segments=tuple(segments))

    def _pieces(
        self, recordings: Sequence[Windows], request: "_Request", *, pool_seconds: float
    ) -> Iterator[tuple[int, Piece]]:
        """Each window as a segment or a gap, with the number of its recording; what overlaps is sewn together."""
        held: tuple[int, Piece] | None = None  # goes on in the window behind it
        count = 0
        texts: dict[int, str] = {}
        for pool in _pools(recordings, pool_seconds):
            if request.listen.context:
                decoded = self._decode_in_turn(pool, request, count, texts)
            else:
                decoded = self._decode_all([window for _, window in pool], request, count)
            count += len(pool)
            for (number, window), heard in zip(pool, decoded, strict=True):
                piece, cut = self._believed(window, heard, request)
                if held is not None:
                    before = held[1]
                    if held[0] == number and piece.start < before.end:
                        before, piece = sew(before, piece)
                    yield held[0], before
                held = (number, piece) if window.runs_on and cut is None else None
                if held is None:
                    yield number, piece
                if cut is not None:
                    yield number, cut
        if held is not None:
            yield held

    def _decode_in_turn(
        self, pool: Sequence[tuple[int, Window]], request: "_Request", count: int, texts: dict[int, str]
    ) -> list[Decoded]:
        """Decode windows one by one, each with the text of the one before, which ``texts`` holds by recording.

        What goes round in a loop, and what nobody said, is shown to none: it would go on.
        """
        decoded = []
        for n, (number, window) in enumerate(pool):
            asked = replace(request, context=texts.get(number, ""))
            heard = self._decode_all([window], asked, count + n)[0]
            seconds = (window.end - window.start) / SAMPLE_RATE_HZ
            doubt = no_speech_probability(window.speech_probability, heard.words, seconds)
            is_wrong = doubt > request.listen.no_speech or is_loop(heard.text, heard.language, request.listen)
            texts[number] = "" if is_wrong else heard.text
            decoded.append(heard)
        return decoded

    def _decode_all(self, windows: Sequence[Window], request: "_Request", count: int) -> list[Decoded]:
        """Decode windows in batches of like length; the answers in the order of ``windows``.

        count: windows of the request that were decoded before.
        """
        decoded: list[Decoded | None] = [None] * len(windows)
        order = sorted(range(len(windows)), key=lambda n: len(windows[n].samples))
        for numbers in self._batches(order, windows):
            speech = self.hear([windows[n].samples for n in numbers])
            code = request.language
            known = None if code is None else [list(LANGUAGES).index(code)] * len(numbers)
            show = None if request.watch is None else self._shower(request.watch, [count + n for n in numbers])
            guide = Guide(hotwords=request.hotwords, context=request.context)
            answers = decode(self.model, speech, known, request.options, show, guide)
            for n, result in zip(numbers, answers, strict=True):
                decoded[n] = result
        return [d for d in decoded if d is not None]

    def _batches(self, order: Sequence[int], windows: Sequence[Window]) -> Iterator[list[int]]:
        is_whole = self.model.config.encoder.mode == "whole"  # each is 30 s then, whatever is said in it
        batch: list[int] = []
        for n in order:
            size = WINDOW_SECONDS * SAMPLE_RATE_HZ if is_whole else len(windows[n].samples)
            if batch and (len(batch) + 1) * size > self.batch_seconds * SAMPLE_RATE_HZ:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    def _believed(self, window: Window, heard: Decoded, request: "_Request") -> tuple[Piece, Gap | None]:
        """A window as a segment, or as a gap where nothing is to be believed; a loop is decoded again first.

        Then the gap behind a text that was cut off where it filled its canvas.
        """
        listen, options = request.listen, request.options
        start, end = window.start / SAMPLE_RATE_HZ, window.end / SAMPLE_RATE_HZ
        for attempt in range(listen.retries + 1):
            if attempt:
                again = replace(request, options=another_try(options, attempt), watch=None)
                heard = self._decode_all([window], again, 0)[0]
            if not any(c.isalnum() for c in heard.text):
                return Gap(start=start, end=end, reason="no text"), None
            doubt = no_speech_probability(window.speech_probability, heard.words, end - start)
            if doubt > listen.no_speech:
                return Gap(start=start, end=end, reason="no speech"), None
            if not is_loop(heard.text, heard.language, listen):
                segment = Segment(
                    start=start,
                    end=end,
                    text=heard.text,
                    language=heard.language,
                    language_probability=None if request.language else heard.language_probability,
                    avg_logprob=heard.avg_logprob,
                    no_speech_prob=doubt,
                    steps=heard.steps,
                    words=self._timed(heard.words, window),
                    alternatives=heard.alternatives,
                )
                last = segment.words[-1].end if segment.words else end
                return segment, None if heard.is_whole else Gap(start=last, end=end, reason="cut")
        return Gap(start=start, end=end, reason="repetition"), None

    def hear(self, clips: Sequence[Samples]) -> Any:
        """What the network hears in windows, each (N,); a clip too short for one feature frame is filled up."""
        ears = self.model.config.encoder
        shortest = SAMPLE_RATE_HZ // 10
        filled = [np.pad(clip, (0, max(0, shortest - len(clip)))) for clip in clips]
        mels = [log_mel(clip, mels=ears.mels, padded=ears.mode != "natural") for clip in filled]
        real = [-(-len(clip) // 320) for clip in filled]  # 50 frames a second
        return decodable(self.model.network).listen(mels, real if ears.mode == "padded" else None)

    def _timed(self, words: Sequence[HeardWord], window: Window) -> tuple[Word, ...]:
        """Words with their times in seconds of the recording, none of them past the window's end."""
        slot = 0.02 * 2**self.model.config.projector.strides  # encoder frames are 20 ms
        begin, limit = window.start / SAMPLE_RATE_HZ, window.end / SAMPLE_RATE_HZ
        return tuple(
            Word(
                word=w.word,
                start=min(begin + start, limit),
                end=min(begin + end, limit),
                probability=w.belief,
            )
            for w, (start, end) in zip(words, word_times(words, window.samples, slot), strict=True)
        )

    def _shower(self, watch: Watch, numbers: Sequence[int]) -> Show:
        def show(draft: Draft, rows: list[int]) -> None:
            for place, row in enumerate(rows):
                watch(numbers[row], draft.step, self.model.tokenizer.decode(draft.tokens[place].tolist()))

        return show


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What was asked for, checked."""

    language: str | None
    options: SamplingOptions
    listen: ListenOptions
    hotwords: Hotwords | None
    watch: Watch | None
    context: str = ""


def _request(
    language: str | None,
    options: SamplingOptions | None,
    listen: ListenOptions | None,
    hotwords: Wanted,
    watch: Watch | None = None,
) -> _Request:
    return _Request(
        language=check_language(language),
        options=options or SamplingOptions(),
        listen=listen or ListenOptions(),
        hotwords=checked(hotwords),
        watch=watch,
    )


def _pools(recordings: Sequence[Windows], seconds: float) -> Iterator[list[tuple[int, Window]]]:
    """Windows, with the numbers of their recordings, a few at a time: ``seconds`` of sound, or a little more."""
    pool: list[tuple[int, Window]] = []
    held = 0
    for number, recording in enumerate(recordings):
        for window in recording:
            pool.append((number, window))
            held += len(window.samples)
            if held >= seconds * SAMPLE_RATE_HZ:
                yield pool
                pool, held = [], 0
    if pool:
        yield pool


def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str = "cpu",
    revision: str | None = None,
    precision: Precision = "auto",
    gpu_memory: float | None = None,
    threads: int | None = None,
) -> Transcriber:
    """A transcriber of the embedded ``mini``, of a checkpoint folder, or of a hub id.

    device: such as "cpu" or "cuda"; revision: of a hub id; precision: of the weights; gpu_memory: GiB of each card, to
    lay a gemma over them and the host as ``diffasr info --plan`` tells; threads: of the CPU, None: one a core. Raises
    ModelError, DownloadError, OptionError.
    """
    return Transcriber(
        loading.load(
            name, device=device, revision=revision, precision=precision, gpu_memory=gpu_memory, threads=threads
        )
    )
