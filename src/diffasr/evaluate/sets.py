"""The name of a test set in, its recordings with what they say out.

A set is a NeMo manifest, one of four public ones of the Hugging Face hub, or any other dataset there with an ``audio``
column. The hub's own Parquet copy is read (branch ``refs/convert/parquet``, a folder a config and split): two of the
four are published as scripts, which ``datasets`` no longer runs, and so only the split that is asked for is fetched.
Of a dataset above 5 GB that copy may hold the beginning only; the test sets named here are whole.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile

from diffasr.audio import SAMPLE_RATE_HZ, Samples, load_audio
from diffasr.errors import DownloadError, ManifestError, OptionError
from diffasr.text import LANGUAGES
from diffasr.train.data import read_manifest

# Where each set is, and what it calls our languages. Mozilla took its own copies of Common Voice off the hub in 2025.
REPOSITORIES = {
    "librispeech": "openslr/librispeech_asr",
    "fleurs": "google/fleurs",
    "voxpopuli": "facebook/voxpopuli",
    "common_voice": "fixie-ai/common_voice_17_0",
}
CONFIGS = {
    "fleurs": {"en": "en_us", "de": "de_de", "fr": "fr_fr", "es": "es_419", "hi": "hi_in", "zh": "cmn_hans_cn"},
    "voxpopuli": {code: code for code in ("en", "de", "fr", "es")},
    "common_voice": {code: code for code in ("en", "de", "fr", "es", "hi")} | {"zh": "zh-CN"},
}
LIBRISPEECH = {
    "test-clean": ("clean", "test"),
    "test-other": ("other", "test"),
    "dev-clean": ("clean", "validation"),
    "dev-other": ("other", "validation"),
}
SPLITS = ("train", "validation", "test")
BRANCH = "refs/convert/parquet"

# Columns by their names in the sets above and in most others; the first that is there counts.
TEXT = ("transcription", "normalized_text", "sentence", "text", "transcript")
IDENTITY = ("audio_id", "path", "id", "file")  # in FLEURS, id is that of the sentence: several recordings share it
SPEAKER = ("speaker_id", "client_id", "speaker")
LANGUAGE = ("language", "lang", "locale")

_UNKNOWN_FRAMES = 2**62  # what libsndfile says of a length that it cannot know
_HELP = "give a manifest (.jsonl), or hf:librispeech:test-clean, hf:fleurs:de:test, hf:owner/name:config:split"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording of a test set and what is said in it."""

    id: str
    """Unique within its set, and the same on every machine."""
    audio: str | bytes | Samples
    """A path, the bytes of a file, or samples at 16 kHz: whatever ``load_audio`` takes."""
    duration: float
    text: str
    language: str
    speaker: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The recordings that one row of results is about."""

    name: str
    clips: tuple[Clip, ...]

    def __post_init__(self) -> None:
        if not self.clips:
            raise ManifestError(f"the set {self.name} has no recording with a text: there is nothing to score")
        name, count = Counter(clip.id for clip in self.clips).most_common(1)[0]
        if count > 1:
            raise ManifestError(f"the set {self.name} has {count} recordings with the id {name!r}: each needs its own")


def read_set(spec: str, *, limit: int | None = None) -> EvaluationSet:
    """The set that ``spec`` names; of each language the first ``limit`` recordings, or all of them.

    spec: a NeMo manifest (``.jsonl``), ``hf:librispeech:test-clean`` (or test-other, dev-clean, dev-other),
    ``hf:fleurs:de:test``, ``hf:voxpopuli:en:test``, ``hf:common_voice:hi:test``, any of these four with ``@`` and a
    folder or repository of the same layout behind it, or ``hf:owner/name:config:split``, where a folder may stand for
    owner/name and ``:language`` may follow. Recordings without a reference text are left out.
    Raises OptionError, ManifestError, DownloadError.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, or None for all recordings, got {limit}")
    if spec.startswith("hf:"):
        part = _part(spec.removeprefix("hf:"))
        return EvaluationSet(name=part.name, clips=tuple(_chosen(_unique(_clips(part)), limit)))
    if not spec.endswith((".jsonl", ".json")):
        raise OptionError(f"no set is called {spec!r}: {_HELP}")
    return EvaluationSet(name=Path(spec).stem, clips=tuple(_chosen(_unique(_listed(Path(spec))), limit)))


def _listed(manifest: Path) -> Iterator[Clip]:
    """Recordings of a manifest; their paths from where it stands are their names."""
    here = manifest.resolve().parent
    for item in read_manifest(manifest):
        if not item.text.strip():
            continue
        yield Clip(
            id=Path(os.path.relpath(item.audio, here)).as_posix(),
            audio=item.audio,
            duration=item.duration,
            text=item.text,
            language=item.language,
            speaker=item.speaker,
            source=item.source,
        )


def _unique(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The same clips, the second and later of one id with a number behind it."""
    seen: Counter[str] = Counter()
    for clip in clips:
        seen[clip.id] += 1
        yield clip if seen[clip.id] == 1 else replace(clip, id=f"{clip.id}#{seen[clip.id]}")


def _chosen(clips: Iterable[Clip], limit: int | None) -> Iterator[Clip]:
    counts: Counter[str] = Counter()
    for clip in clips:
        counts[clip.language] += 1
        if limit is None or counts[clip.language] <= limit:
            yield clip


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One split of one config of a dataset."""

    name: str
    place: str
    """A folder or a hub id."""
    config: str
    split: str
    language: str | None
    """None: each row says it."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Its Parquet files: the hub's copy (whole, and of large sets), then the layout that people upload."""
        inner = f"{self.config}/{self.split}"
        return f"{inner}/*.parquet", f"{self.config}/partial-{self.split}/*.parquet", f"{inner}-*.parquet"


def _part(name: str) -> _Part:
    """What stands behind ``hf:``, taken apart."""
    short, _, place = name.partition("@")
    match short.split(":"):
        case ["librispeech", part]:
            if part not in LIBRISPEECH:
                raise OptionError(f"LibriSpeech has no {part!r}: choose one of {', '.join(LIBRISPEECH)}")
            config, split = LIBRISPEECH[part]
            return _Part(
                name=short, place=place or REPOSITORIES["librispeech"], config=config, split=split, language="en"
            )
        case [known, language, split] if known in CONFIGS:
            configs = CONFIGS[known]
            if language not in configs:
                raise OptionError(f"{known} has no language {language!r} for us: it has {', '.join(configs)}")
            if split not in SPLITS:
                raise OptionError(f"{known} has no split {split!r}: choose one of {', '.join(SPLITS)}")
            config = configs[language]
            return _Part(name=short, place=place or REPOSITORIES[known], config=config, split=split, language=language)
    match name.split(":"):
        case [place, config, split] if place not in REPOSITORIES:
            return _Part(name=name, place=place, config=config, split=split, language=_code(config))
        case [place, config, split, language] if place not in REPOSITORIES:
            if language not in LANGUAGES:
                raise OptionError(f"{language!r} in hf:{name} is none of our languages: {', '.join(LANGUAGES)}")
            return _Part(name=name, place=place, config=config, split=split, language=language)
    raise OptionError(f"no set is called hf:{name}: {_HELP}")


def _clips(part: _Part) -> Iterator[Clip]:
    """Rows of a dataset as clips, audio as the bytes of its file."""
    for number, row in enumerate(_rows(part)):
        text = str(_first(row, TEXT) or "").strip()
        if not text:
            continue
        audio = row["audio"]["bytes"] or row["audio"]["path"]
        identity = _first(row, IDENTITY) or row["audio"]["path"] or f"{number:06d}"
        language = part.language or _code(str(_first(row, LANGUAGE)))
        if language is None:
            raise ManifestError(
                f"row {number} of {part.name} is in none of {', '.join(LANGUAGES)}: put the language behind the split, "
                f"as in hf:{part.name}:en"
            )
        speaker = _first(row, SPEAKER)
        yield Clip(
            id=PurePosixPath(str(identity)).name,
            audio=audio,
            duration=_seconds(audio),
            text=text,
            language=language,
            speaker="" if speaker in (None, "None") else str(speaker),  # VoxPopuli writes None as a word
            source=part.name,
        )


def _rows(part: _Part) -> Iterator[Mapping[str, Any]]:
    """Rows of all Parquet files of ``part``, read as they are asked for, audio not decoded."""
    try:
        from datasets import Audio, load_dataset
    except ModuleNotFoundError as error:
        raise OptionError(f"reading hf:{part.name} needs datasets: pip install 'diffasr[evaluate]'") from error
    files = _files(part)
    data = load_dataset("parquet", data_files=files, split="train", streaming=True)
    columns = data.column_names or []
    if "audio" not in columns or not set(columns) & set(TEXT):
        raise ManifestError(
            f"{files[0]} has the columns {', '.join(columns)}: it needs audio and one of {', '.join(TEXT)}"
        )
    yield from data.cast_column("audio", Audio(decode=False))


def _files(part: _Part) -> list[str]:
    """Paths of the Parquet files of ``part``, fetched from the hub unless its place is a folder."""
    folder = Path(part.place).expanduser()
    is_local = folder.is_dir() or part.place.startswith((".", "/", "~"))
    if not is_local:
        folder = _fetch(part)
    found = sorted(str(file) for pattern in part.patterns for file in folder.glob(pattern))
    if found:
        return found
    if is_local:
        raise ManifestError(f"{folder} has none of {', '.join(part.patterns)}: is it a dataset, and has it that split?")
    raise DownloadError(
        f"the dataset {part.place!r} has no {part.config}/{part.split} on its branch {BRANCH}: check their names on "
        "https://huggingface.co/datasets, or write a manifest (.jsonl) of its recordings"
    )


def _fetch(part: _Part) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(part.place, repo_type="dataset", revision=BRANCH, allow_patterns=list(part.patterns))
        )
    except Exception as error:  # the hub client raises a dozen kinds, none of them with a remedy
        raise DownloadError(
            f"the dataset {part.place!r} could not be fetched from the hub: {error} Is there a network? A dataset "
            "behind a form needs `hf auth login` (or huggingface-cli login) first. Without the hub, write a manifest "
            "(.jsonl) of its recordings, or name a folder that holds its Parquet files"
        ) from error


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The value of the first column of these that a row has; None if it has none."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _code(label: str) -> str | None:
    """One of our languages from what others call it: de, de_DE, German, cmn_hans_cn; None for all else."""
    words = {name.lower(): code for code, name in LANGUAGES.items()} | {"cmn": "zh", "chinese": "zh"}
    start = re.split(r"[-_]", label.lower())[0]
    return start if start in LANGUAGES else words.get(start)


def _seconds(audio: str | bytes) -> float:
    """Length of a recording; the header says it, except where there is none."""
    try:
        info = soundfile.info(io.BytesIO(audio) if isinstance(audio, bytes) else audio)
    except soundfile.SoundFileError:
        info = None
    if info is not None and 0 < info.frames < _UNKNOWN_FRAMES:
        return float(info.frames / info.samplerate)
    return len(load_audio(audio)) / SAMPLE_RATE_HZ
