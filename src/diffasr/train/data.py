"""Manifests in, batches out: utterances read, encoded once by the frozen encoder, and dealt by seconds of audio.

A manifest is JSON lines with NeMo's keys: ``audio_filepath`` (relative to the manifest), ``duration``, ``text``, and
``lang``. A feature store is one float16 file of encoder frames and an index beside it.
"""

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffasr.audio import Samples, load_audio, log_mel
from diffasr.errors import AudioError, ManifestError
from diffasr.model.encoder import WhisperEncoder, stack
from diffasr.model.network import Speech
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train.buckets import Buckets, BucketSampler

if TYPE_CHECKING:
    from diffasr.train.recordings import Recordings


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest."""

    audio: str
    duration: float
    text: str
    language: str
    source: str = ""
    speaker: str = ""


def read_manifest(path: str | os.PathLike[str]) -> list[Utterance]:
    """All utterances of a NeMo manifest, or of tar shards, here or at an address that fsspec knows.

    Raises ManifestError that names the line and what is wrong with it, and what ``read_shards`` raises.
    """
    from diffasr.train.tar import is_shards, read_shards, sound

    file = os.fspath(path)
    if is_shards(file):
        return read_shards(file)
    if "://" not in file and not Path(file).is_file():
        raise ManifestError(f"no manifest at {file}")
    held = sound(file)
    try:
        text = held.decode() if isinstance(held, bytes) else Path(held).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{file} is not UTF-8: {error}") from error
    found = []
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        try:
            fields = json.loads(line)
            item = Utterance(
                audio=_beside(file, fields["audio_filepath"]),
                duration=float(fields["duration"]),
                text=_said(fields["text"]),
                language=str(fields["lang"]),
                source=str(fields.get("source") or ""),
                speaker=str("" if fields.get("speaker") is None else fields["speaker"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"{file} line {number}: {error!r}; a line needs audio_filepath, duration, text, lang"
            ) from error
        if item.language not in LANGUAGES:
            raise ManifestError(f"{file} line {number}: lang {item.language!r} is none of {', '.join(LANGUAGES)}")
        found.append(item)
    return found


def _said(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r}, not a string")
    return text


def _beside(manifest: str, audio: str) -> str:
    """Where a recording is that a manifest names."""
    if "://" in audio:
        return audio
    if "://" in manifest:
        return f"{manifest.rpartition('/')[0]}/{audio}"
    return str((Path(manifest).parent / audio).resolve())


class FeatureStore:
    """Encoder frames of many utterances, on disk, read without copying.

    ``frames.f16`` holds (sum of T, S) float16; ``index.jsonl`` an utterance a line with its first frame and count.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        index = self.folder / "index.jsonl"
        if not index.is_file():
            raise ManifestError(f"no features at {self.folder}: build them first")
        rows = _read_index(index)
        if not rows:
            raise ManifestError(f"no features in {self.folder}: none of its recordings could be used")
        self.utterances = [Utterance(**row["utterance"]) for row in rows]
        self.spans = [(row["start"], row["count"]) for row in rows]
        shape = (sum(row["count"] for row in rows), rows[0]["width"])  # what lies past that is of a broken build
        self._frames = np.memmap(self.folder / "frames.f16", dtype=np.float16, mode="r", shape=shape)

    def frames(self, number: int) -> Tensor:
        """Frames (T, S) float32 of one utterance."""
        start, count = self.spans[number]
        return torch.from_numpy(self._frames[start : start + count].astype(np.float32))

    @classmethod
    def build(
        cls,
        utterances: Iterable[Utterance],
        encoder: WhisperEncoder,
        folder: str | os.PathLike[str],
        *,
        padded: bool = False,
        max_seconds: float = 30.0,
    ) -> "FeatureStore":
        """Encode what is not there yet and append it; a broken or over-long recording is reported and left out.

        padded: encode 30 s each and keep the real frames. An interrupted build goes on where it stopped.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        index = place / "index.jsonl"
        done = set()
        start = 0
        if index.is_file():
            rows = _read_index(index)
            done = {row["utterance"]["audio"] for row in rows}
            start = sum(row["count"] for row in rows)
        width = encoder.layer_norm.weight.shape[0]
        todo = sorted((u for u in utterances if u.audio not in done), key=lambda u: u.duration)
        with (place / "frames.f16").open("ab") as out, index.open("ab") as listing:
            out.truncate(start * width * 2)
            listing.truncate(index.read_bytes().rfind(b"\n") + 1)
            mels_of = partial(log_mel, mels=encoder.conv1.in_channels, padded=padded)
            for group, mels in _mel_groups(todo, mels_of, max_seconds=max_seconds):
                lines = []
                for utterance, frames in zip(group, _encode(encoder, mels, group, padded=padded), strict=True):
                    out.write(frames.half().numpy().tobytes())
                    row = {"utterance": asdict(utterance), "start": start, "count": len(frames), "width": width}
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
                    start += len(frames)
                out.flush()  # before the index: it never names frames that are not there
                listing.write("".join(lines).encode())
                listing.flush()
        return cls(place)


def _read_index(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an index; one that was cut short does not count."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]]


def _mel_groups(
    utterances: list[Utterance],
    mels_of: Callable[[Samples], Samples],
    *,
    max_seconds: float,
    group_seconds: float = 60.0,
) -> Iterator[tuple[list[Utterance], list[Tensor]]]:
    from diffasr.train.tar import sound

    group: list[Utterance] = []
    features: list[Tensor] = []
    for utterance in utterances:
        try:
            mel = torch.from_numpy(mels_of(load_audio(sound(utterance.audio), max_seconds=max_seconds)))
        except AudioError as error:
            print(f"left out: {error}")
            continue
        group.append(utterance)
        features.append(mel)
        if sum(f.shape[1] for f in features) > group_seconds * 100:
            yield group, features
            group, features = [], []
    if group:
        yield group, features


@torch.inference_mode()
def _encode(encoder: WhisperEncoder, mels: list[Tensor], group: list[Utterance], *, padded: bool) -> list[Tensor]:
    batch, lengths = stack(mels)
    with torch.autocast("cpu", torch.bfloat16):  # three times faster where the CPU has it; training is in it anyway
        frames = encoder(batch, lengths).float()
    counts = [int(WhisperEncoder.frames(n)) for n in lengths]
    if padded:
        counts = [min(c, int(u.duration * 50 + 0.5)) for c, u in zip(counts, group, strict=True)]
    return [row[:count] for row, count in zip(frames, counts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Mel:
    """Log-mel features of a batch, for an encoder that is run in the step."""

    features: Tensor
    """(B, mels, M)."""
    lengths: Tensor
    """(B,) real ones."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees."""

    speech: Speech | Mel
    languages: Tensor
    """(B,) index into LANGUAGES."""
    tokens: Tensor
    """(B, U) text ids, end tokens behind each."""
    lengths: Tensor
    """(B,) text tokens, the end not counted."""
    pieces: Tensor
    """(B, P) CTC labels of the text."""
    piece_lengths: Tensor
    """(B,) labels of each row."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """An utterance of a store, tokenised."""

    store: "FeatureStore | Recordings"
    number: int
    more: tuple[int, ...] = ()
    """Further utterances of the store that are said right behind it."""
    tokens: tuple[int, ...]
    pieces: tuple[int, ...]
    language: str
    seconds: float


def needed_slots(pieces: Sequence[int]) -> int:
    """How many slots CTC needs for these labels: a blank stands between equal neighbours."""
    return len(pieces) + sum(a == b for a, b in pairwise(pieces))


def read_items(
    stores: "Iterable[FeatureStore | Recordings]", tokenizer: Tokenizer, *, max_tokens: int, strides: int = 2
) -> list[Item]:
    """Every utterance that fits: some text, at most ``max_tokens``, and no more labels than CTC has slots.

    strides: of the projector, each of which halves the frames.
    """
    items = []
    for store in stores:
        for number, utterance in enumerate(store.utterances):
            tokens, pieces = tokenizer.encode(utterance.text), tokenizer.pieces(utterance.text)
            count = store.spans[number][1]
            if 0 < len(tokens) <= max_tokens and 0 < needed_slots(pieces) <= count // 2**strides:
                items.append(
                    Item(
                        store=store, number=number, tokens=tuple(tokens), pieces=tuple(pieces),
                        language=utterance.language, seconds=count / 50,
                    )
                )  # fmt: skip
    return items


def deal(
    items: list[Item], *, epoch: int, seed: int, seconds: float, shares: Mapping[str, float] | None = None
) -> list[list[Item]]:
    """One epoch of batches, each of about ``seconds`` of audio, of utterances of like length; the same for the same
    seed and epoch.

    shares: how much of the epoch each language gets; a language with less repeats, one with more is cut.
    """
    dice = random.Random(f"{seed}:{epoch}")
    chosen = list(items) if shares is None else _balance(items, shares, dice)
    chosen.sort(key=lambda item: item.seconds * dice.uniform(0.85, 1.15))
    batches: list[list[Item]] = [[]]
    longest = 0.0
    for item in chosen:
        longest = max(longest, item.seconds)
        if batches[-1] and longest * (len(batches[-1]) + 1) > seconds:
            batches.append([])
            longest = item.seconds
        batches[-1].append(item)
    dice.shuffle(batches)
    return batches


def deal_buckets(
    items: list[Item], plan: Buckets, *, epoch: int, shares: Mapping[str, float] | None = None
) -> list[list[Item]]:
    """The same with batches of a bucket each: see buckets.py."""
    dice = random.Random(f"{plan.seed}:{epoch}")
    chosen = list(items) if shares is None else _balance(items, shares, dice)
    dealt = BucketSampler([item.seconds for item in chosen], plan).dealt(epoch)
    return [[chosen[number] for number in batch] for batch in dealt]


def _balance(items: list[Item], shares: Mapping[str, float], dice: random.Random) -> list[Item]:
    chosen: list[Item] = []
    total = sum(shares.values())
    for language, share in sorted(shares.items()):
        mine = [item for item in items if item.language == language]
        if not mine:
            raise ManifestError(f"the recipe gives {language} a share of {share}, but no utterance is in {language}")
        want = round(len(items) * share / total)
        while want > 0:
            dice.shuffle(mine)
            chosen += mine[:want]
            want -= len(mine)
    return chosen


def collate(items: list[Item], *, end: int, seed: Sequence[int] = (0,), multiple: int = 1) -> Batch:
    """Read the frames, or the sound, and pad everything to the longest of the batch.

    seed: of what is changed in the sound. multiple: of mel frames, that sound is padded to.
    """
    tokens = torch.full((len(items), max(len(i.tokens) for i in items)), end)
    for row, item in enumerate(items):
        tokens[row, : len(item.tokens)] = torch.tensor(item.tokens)
    pieces = [torch.tensor(item.pieces) for item in items]
    names = list(LANGUAGES)
    return Batch(
        speech=_speech(items, seed, multiple),
        languages=torch.tensor([names.index(item.language) for item in items]),
        tokens=tokens,
        lengths=torch.tensor([len(item.tokens) for item in items]),
        pieces=torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True),
        piece_lengths=torch.tensor([len(item.pieces) for item in items]),
    )


def _speech(items: list[Item], seed: Sequence[int], multiple: int) -> Speech | Mel:
    if not all(isinstance(item.store, FeatureStore) for item in items):
        mels = [
            item.store.mel((item.number, *item.more), np.random.default_rng([*seed, row]))
            for row, item in enumerate(items)
            if not isinstance(item.store, FeatureStore)
        ]
        features, lengths = stack(mels, multiple=multiple)
        return Mel(features=features, lengths=lengths)
    frames = [item.store.frames(item.number) for item in items if isinstance(item.store, FeatureStore)]
    sizes = torch.tensor([len(f) for f in frames])
    return Speech(frames=torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), lengths=sizes)
