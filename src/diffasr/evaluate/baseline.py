"""Samples in, text out, by Whisper: what our own figures stand beside.

Two runtimes of the same weights (arXiv:2212.04356): transformers in float32, and faster-whisper (CTranslate2) with int8
matrices. Both run on the CPU and decode one recording at a time, once: no second try at a higher temperature, no voice
activity detector, no timestamps, no text of the window before. So both do the same work, and none of their answers
depends on chance. A recording longer than one window is cut at silence, as we do for our own models.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, split_at_silence
from diffasr.errors import DownloadError, ModelError, OptionError
from diffasr.evaluate.systems import check_baseline
from diffasr.model.checkpoint import find
from diffasr.text import LANGUAGES, Tokenizer, check_language

_Writer = Callable[[Samples, str | None], tuple[str, str]]


class Baseline(Protocol):
    """Another recogniser: the versions it ran with, and what it hears."""

    versions: dict[str, str]

    def transcribe(self, samples: Samples, language: str | None) -> tuple[str, str]:
        """Text and language of (N,) samples at 16 kHz; language None: the one of ours that it finds likeliest."""
        ...


def load_baseline(spec: str, *, beam: int = 1, threads: int = 2) -> Baseline:
    """The recogniser that ``spec`` names, ready to run.

    spec: ``whisper:PLACE`` or ``whisper:PLACE:ct2``, where PLACE is a folder or a hub id; a folder that holds a
    CTranslate2 model needs no ``:ct2``. beam: hypotheses that are kept at each token, 1 is greedy.
    Raises OptionError, ModelError, DownloadError.
    """
    if beam < 1:
        raise OptionError(f"beam must be at least 1, got {beam}")
    if threads < 1:
        raise OptionError(f"threads must be at least 1, got {threads}")
    check_baseline(spec)
    rest = spec.partition(":")[2]
    place = rest.removesuffix(":ct2")
    folder = Path(place).expanduser()
    if place != rest or ((folder / "model.bin").is_file() and not (folder / "model.safetensors").is_file()):
        return _Ct2Whisper(place, beam=beam, threads=threads)
    return _TorchWhisper(place, beam=beam, threads=threads)


class _TorchWhisper:
    """Whisper by transformers: the encoder once, then ``generate`` behind a prompt that names the language.

    Tokens that Whisper's own ``generation_config.json`` suppresses (brackets, notes) are suppressed where the
    checkpoint has that file; special tokens, and a blank at the start, always are.
    """

    def __init__(self, place: str, *, beam: int, threads: int) -> None:
        try:
            from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
        except ModuleNotFoundError as error:
            raise OptionError(f"whisper:{place} needs transformers: pip install 'diffasr[evaluate]'") from error
        files = ["config.json", "model.safetensors", "tokenizer.json"]
        if not Path(place).expanduser().is_dir():
            files.append("generation_config.json")
        folder = find(place, files=tuple(files))
        self.versions = {package: version(package) for package in ("transformers", "torch")}
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.seconds = self.model.config.max_source_positions / 50  # 50 encoder frames a second
        self.features = WhisperFeatureExtractor(
            feature_size=self.model.config.num_mel_bins, chunk_length=int(self.seconds)
        )
        self.options = _generation(folder, self.tokenizer, beam, self.model.config.max_target_positions)
        self.threads = threads

    def transcribe(self, samples: Samples, language: str | None) -> tuple[str, str]:
        """Text and language of (N,) samples at 16 kHz."""
        with torch.inference_mode(), _torch_threads(self.threads):
            return _by_windows(samples, language, self._write, self.seconds)

    def _write(self, samples: Samples, language: str | None) -> tuple[str, str]:
        from transformers.generation.utils import GenerationMixin

        mel = self.features(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        heard = self.model.get_encoder()(mel)
        code = language or self._language(heard)
        prompt = self.tokenizer.prefix(code)
        # Not Whisper's own generate(): that one would encode twice to find a language, and look for timestamps.
        tokens: Any = GenerationMixin.generate(
            self.model,
            encoder_outputs=heard,
            decoder_input_ids=torch.tensor([prompt]),
            generation_config=self.options,
        )
        return self.tokenizer.decode(tokens[0, len(prompt) :].tolist()), code

    def _language(self, heard: Any) -> str:
        start = torch.tensor([[self.tokenizer.start]])
        logits = self.model(encoder_outputs=heard, decoder_input_ids=start).logits[0, -1]  # (V,)
        return max(LANGUAGES, key=lambda code: float(logits[self.tokenizer.languages[code]]))


def _generation(folder: Path, tokenizer: Tokenizer, beam: int, positions: int) -> Any:
    """How transformers is to decode: the first of the ``beam`` most probable texts, no chance in it."""
    from transformers import GenerationConfig

    stored = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
    special = set(tokenizer.backend.get_added_tokens_decoder()) - {tokenizer.end}
    blank = [tokenizer.backend.token_to_id(token) for token in ("\u0120", " ")]  # byte-level BPE writes a space so
    return GenerationConfig(
        num_beams=beam,
        do_sample=False,
        max_new_tokens=positions - len(tokenizer.prefix("en")),
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        decoder_start_token_id=tokenizer.start,
        suppress_tokens=sorted(special | set((stored and stored.suppress_tokens) or ())),
        begin_suppress_tokens=[tokenizer.end, *(token for token in blank if token is not None)],
    )


class _Ct2Whisper:
    """Whisper by faster-whisper: CTranslate2, int8 matrices, its own features and tokenizer."""

    def __init__(self, place: str, *, beam: int, threads: int) -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise OptionError(f"whisper:{place}:ct2 needs faster-whisper: pip install 'diffasr[evaluate]'") from error
        folder = Path(place).expanduser()
        is_local = folder.exists() or place.startswith((".", "/", "~"))
        if is_local:
            find(place, files=("config.json", "model.bin", "tokenizer.json"))
        self.versions = {package: version(package) for package in ("faster-whisper", "ctranslate2")}
        self.beam = beam
        try:
            self.model: Any = WhisperModel(
                str(folder) if is_local else place, device="cpu", compute_type="int8", cpu_threads=threads
            )
        except Exception as error:  # CTranslate2 and the hub client raise what they like
            if is_local:
                raise ModelError(f"{folder} is no CTranslate2 Whisper: {error}; convert or fetch it again") from error
            raise DownloadError(
                f"model {place!r} could not be fetched from the hub: {error}; is the id that of a CTranslate2 model, "
                "and is there a network? A local folder needs none"
            ) from error

    def transcribe(self, samples: Samples, language: str | None) -> tuple[str, str]:
        """Text and language of (N,) samples at 16 kHz."""
        return _by_windows(samples, language, self._write, WINDOW_SECONDS)

    def _write(self, samples: Samples, language: str | None) -> tuple[str, str]:
        segments, info = self.model.transcribe(
            samples,
            language=language,
            beam_size=self.beam,
            temperature=0.0,  # one try; without a second one, its two thresholds have nothing to decide
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,  # a window is never dropped: what is heard in silence counts as an error
            condition_on_previous_text=False,
            without_timestamps=True,
            vad_filter=False,
        )
        if info.language not in LANGUAGES:  # nothing is decoded before the segments are read
            likely = dict(info.all_language_probs)
            return self._write(samples, max(LANGUAGES, key=lambda code: likely.get(code, 0.0)))
        return "".join(segment.text for segment in segments), info.language


def _by_windows(samples: Samples, language: str | None, write: _Writer, seconds: float) -> tuple[str, str]:
    """Texts of all windows in a row; the language found in the first holds for the others."""
    found = check_language(language)
    texts = []
    for start, end in split_at_silence(samples, max_seconds=seconds):
        text, found = write(samples[start:end], found)
        texts.append(text.strip())
    return ("" if found == "zh" else " ").join(text for text in texts if text), found or ""


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
