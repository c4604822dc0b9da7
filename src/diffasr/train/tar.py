"""Shards in, utterances out: tar files of recordings with their texts, here or in object storage, read where they are.

Two layouts. WebDataset: members of one name are one utterance, ``a.flac`` with ``a.json`` (text, lang, duration) or
``a.txt``. Lhotse Shar: ``cuts.*.jsonl.gz`` beside ``recording.*.tar``. Nothing is unpacked: the audio of an utterance
is the address of its tar with the first byte and the number of bytes, and is fetched by that range, so that a sampler
may ask for it in any order. Addresses are all that fsspec opens: paths, s3://, gs://, https://, memory://.
"""

import gzip
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import soundfile

from diffasr.errors import DownloadError, ManifestError, OptionError
from diffasr.text import LANGUAGES
from diffasr.train.data import Utterance

AUDIO = (".flac", ".wav", ".opus", ".ogg", ".mp3", ".m4a")
CUTS = ".jsonl.gz"
_RANGE = re.compile(r"(?P<tar>.+\.tar)#(?P<first>\d+)\+(?P<size>\d+)")


def is_shards(place: str) -> bool:
    """Whether ``read_shards`` reads it: its name ends as those of tar files and of lhotse's cuts do."""
    return place.endswith((".tar", CUTS))


def read_shards(place: str, *, language: str | None = None) -> list[Utterance]:
    """All utterances of the shards at ``place``, in order; only headers and texts are read.

    place: an address, ``*`` for many: ``s3://speech/train-*.tar``, or ``shar/cuts.*.jsonl.gz``, whose recordings lie
    beside. language: of utterances that name none. Raises ManifestError, DownloadError, OptionError.
    """
    names = addresses(place)
    if not names:
        raise ManifestError(f"no shard at {place}")
    reader = _cuts if place.endswith(CUTS) else _members
    return [utterance for name in names for utterance in reader(name, language)]


def addresses(pattern: str) -> list[str]:
    """What a pattern with ``*`` stands for, sorted, each with its protocol."""
    files, path = _system(pattern)
    found = sorted(files.glob(path)) if "*" in path else [path] if files.exists(path) else []
    return [files.unstrip_protocol(name) if "://" in pattern else name for name in found]


def sound(audio: str) -> str | bytes:
    """What ``load_audio`` takes for the ``audio`` of an utterance: a local path as it is, or the bytes of a member or
    of a remote file. Raises DownloadError."""
    if "://" not in audio and not _RANGE.fullmatch(audio):
        return audio
    match = _RANGE.fullmatch(audio)
    files, path = _system(match["tar"] if match else audio)
    first, size = (int(match["first"]), int(match["size"])) if match else (0, None)
    try:
        held: bytes = files.cat_file(path, start=first, end=None if size is None else first + size)
    except OSError as error:
        raise DownloadError(f"{audio} could not be read: {error}; is it still there, and may you read it?") from error
    if size is not None and len(held) != size:
        raise DownloadError(f"{audio} gave {len(held)} bytes: the shard has been cut or changed; list it again")
    return held


def write_shards(rows: Iterable[tuple[Utterance, bytes]], place: str, *, rows_each: int = 2000) -> list[str]:
    """Utterances with the bytes of their audio files as WebDataset shards; returns the shards' addresses.

    place: with one ``*``, which becomes the shard's number: ``s3://speech/train-*.tar``. The member's ending is that
    of ``Utterance.audio``.
    """
    if place.count("*") != 1 or not place.endswith(".tar"):
        raise OptionError(f"shards need a name with one * that ends in .tar, got {place!r}")
    files, path = _system(place)
    files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    written: list[str] = []
    stream = iter(rows)
    for number in itertools.count():
        held = list(itertools.islice(stream, rows_each))
        if not held:
            return written
        name = path.replace("*", f"{number:06d}")
        with files.open(name, "wb") as out, tarfile.open(fileobj=out, mode="w|") as tar:
            for row, (utterance, audio) in enumerate(held):
                about = {"text": utterance.text, "lang": utterance.language, "duration": utterance.duration,
                         "source": utterance.source, "speaker": utterance.speaker}  # fmt: skip
                key = f"{number:06d}-{row:06d}"
                _add(tar, key + PurePosixPath(utterance.audio).suffix, audio)
                _add(tar, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
        written.append(place.replace("*", f"{number:06d}"))
    return written


def _add(tar: tarfile.TarFile, name: str, held: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(held)
    tar.addfile(info, io.BytesIO(held))


def _system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(address)
    except (ImportError, ValueError) as error:  # a protocol that is unknown, or whose package is not there
        raise OptionError(f"{address} can't be opened: {error}; for s3:// pip install s3fs, for gs:// gcsfs") from error
    return files, str(path)


def _members(name: str, language: str | None) -> Iterator[Utterance]:
    """Utterances of one WebDataset tar, in its order."""
    for key, group in itertools.groupby(_listed(name), key=lambda row: row[0]):
        held = {ending: (address, text) for _, ending, address, text in group}
        ending = next((e for e in held if e in AUDIO), None)
        if ending is None:
            raise ManifestError(f"{name}: {key} has no audio, only {', '.join(held)}; audio ends in {', '.join(AUDIO)}")
        about = _object(held[".json"][1], f"{name}: {key}.json") if ".json" in held else {}
        if ".txt" in held:
            about.setdefault("text", held[".txt"][1].decode())
        yield _utterance(held[ending][0], about, language, f"{name}: {key}")


def _listed(name: str) -> Iterator[tuple[str, str, str, bytes]]:
    """Key, ending, address and (of texts) content of every file in a tar. The key ends at the first dot of the name."""
    files, path = _system(name)
    try:
        with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, dot, rest = last.partition(".")
                ending = (dot + rest).lower()
                held = tar.extractfile(member) if ending in (".json", ".txt") else None
                address = f"{name}#{member.offset_data}+{member.size}"
                yield f"{folder}/{stem}", ending, address, held.read() if held else b""
    except tarfile.TarError as error:
        raise ManifestError(f"{name} is not a whole tar without compression: {error}") from error
    except OSError as error:
        raise DownloadError(f"{name} could not be read: {error}") from error


def _cuts(name: str, language: str | None) -> Iterator[Utterance]:
    """Utterances of one shard of lhotse's cuts, each with one supervision, and the tar of recordings beside it."""
    folder, slash, file = name.rpartition("/")
    tar = folder + slash + file.replace("cuts", "recording", 1).removesuffix(CUTS) + ".tar"
    places = {}
    for member, ending, address, _ in _tar_members(tar):
        if ending in AUDIO:
            places[member] = address
    files, path = _system(name)
    with files.open(path, "rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            cut = _object(line, name)
            said = cut.get("supervisions", [])
            if len(said) != 1 or cut.get("id") not in places:
                raise ManifestError(
                    f"{name}: cut {cut.get('id')!r} has {len(said)} supervisions, and "
                    f"{'a' if cut.get('id') in places else 'no'} recording in {tar}; it needs one of each"
                )
            about = said[0] | {"duration": cut.get("duration")}
            yield _utterance(places[cut["id"]], about, language, f"{name}: {cut['id']}")


def _tar_members(tar: str) -> Iterator[tuple[str, str, str, bytes]]:
    """As ``_listed``, but the key is all of the name before its last dot: ids of cuts may hold dots."""
    for key, ending, address, text in _listed(tar):
        stem, dot, last = (key.removeprefix("/") + ending).rpartition(".")
        yield stem, dot + last, address, text


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{where} is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise ManifestError(f"{where} is not a JSON object")
    return held


def _utterance(audio: str, about: Mapping[str, Any], language: str | None, where: str) -> Utterance:
    text, said = about.get("text"), about.get("lang") or about.get("language") or language
    names = {full.lower(): code for code, full in LANGUAGES.items()} | {"cmn": "zh", "chinese": "zh"}
    short = re.split(r"[-_]", str(said).lower())[0]  # de_de, cmn_hans_cn
    code = names.get(short, short)
    if not isinstance(text, str) or code not in LANGUAGES:
        raise ManifestError(f"{where} needs a text, got {text!r}, and a lang of {', '.join(LANGUAGES)}, got {said!r}")
    duration = about.get("duration")
    return Utterance(
        audio=audio,
        duration=_seconds(audio) if duration is None else float(duration),
        text=text,
        language=code,
        source=str(about.get("source") or ""),
        speaker=str(about.get("speaker") or ""),
    )


def _seconds(audio: str) -> float:
    """Length by the header; the whole member is fetched for it."""
    held = sound(audio)
    try:
        info = soundfile.info(io.BytesIO(held) if isinstance(held, bytes) else held)
    except soundfile.SoundFileError as error:
        raise ManifestError(f"{audio}: no duration is given, and its header has none: {error}") from error
    return float(info.frames / info.samplerate)
