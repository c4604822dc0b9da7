"""Published corpora in, tar shards out: LibriSpeech, VoxPopuli and FLEURS, six languages.

    python recipes/gemma-26b/prepare.py librispeech data/LibriSpeech s3://speech/librispeech-*.tar
    python recipes/gemma-26b/prepare.py voxpopuli data/voxpopuli s3://speech/voxpopuli-*.tar      # en, de, fr, es
    python recipes/gemma-26b/prepare.py fleurs hub s3://speech/fleurs-*.tar                       # all six
    python recipes/gemma-26b/prepare.py fleurs hub data/fleurs-dev-*.tar --split validation
    python recipes/gemma-26b/prepare.py any hf:owner/name:config:train:de data/more-*.tar    # any set of the hub

lhotse reads the first as `lhotse download librispeech` leaves it. The second needs its sessions, as `lhotse download
voxpopuli --subset asr` leaves them, and beside them the annotations (asr_en.tsv.gz). FLEURS comes
from the hub's Parquet copy. Texts are in lower case: LibriSpeech has no other, and one style is easier to learn.
"""

import argparse
import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import soundfile

from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS
from diffasr.evaluate.sets import read_set
from diffasr.text import LANGUAGES
from diffasr.train.data import Utterance
from diffasr.train.tar import write_shards

PARTS = {
    "train": ["train-clean-100", "train-clean-360", "train-other-500"], "validation": ["dev-clean"],
    "test": ["test-clean"],
}  # fmt: skip
PARLIAMENT = ("en", "de", "fr", "es")

Rows = Iterator[tuple[Utterance, bytes]]


def librispeech(folder: str, split: str) -> Rows:
    """Utterances of LibriSpeech as its tars unpack."""
    from lhotse.recipes import prepare_librispeech

    for manifests in prepare_librispeech(folder, dataset_parts=PARTS[split]).values():
        yield from _cuts(manifests, "en", "librispeech")


def voxpopuli(folder: str, split: str) -> Rows:
    """Transcribed segments of VoxPopuli, cut from whole sessions, in four of the six languages."""
    sessions = {file.stem.removesuffix("_original"): file for file in Path(folder).rglob("*_original.ogg")}
    if not sessions:
        raise SystemExit(f"no session (*_original.ogg) below {folder}: lhotse download voxpopuli --subset asr {folder}")
    for language in PARLIAMENT:
        with gzip.open(Path(folder) / f"asr_{language}.tsv.gz", "rt", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="|"):
                start, seconds = float(row["start_time"]), float(row["end_time"]) - float(row["start_time"])
                session, text = sessions.get(row["session_id"]), row["normed_text"]
                if row["split"] != ("dev" if split == "validation" else split) or session is None:
                    continue
                if text and seconds <= WINDOW_SECONDS:
                    said = _utterance(text, seconds, language, "voxpopuli", row["speaker_id"])
                    yield said, _cut(session, start, seconds)


def _cut(file: Path, start: float, seconds: float) -> bytes:
    """Part of a long recording as a flac file."""
    with soundfile.SoundFile(file) as recording:
        rate = recording.samplerate
        recording.seek(round(start * rate))
        samples = recording.read(round(seconds * rate), always_2d=True)[:, 0]
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="FLAC")
    return out.getvalue()


def fleurs(_: str, split: str) -> Rows:
    """FLEURS of the hub, in all six."""
    for language in LANGUAGES:
        yield from any_set(f"hf:fleurs:{language}:{split}", split)


def any_set(spec: str, _: str) -> Rows:
    """Whatever ``diffasr evaluate`` reads by this name: of the hub, or a manifest. It must fit into memory."""
    for clip in read_set(spec).clips:
        audio = clip.audio if isinstance(clip.audio, bytes) else Path(str(clip.audio)).read_bytes()
        yield _utterance(clip.text, clip.duration, clip.language, clip.source, clip.speaker), audio


def _cuts(manifests: dict[str, Iterable[object]], language: str, source: str) -> Rows:
    """What lhotse prepared, cut at its supervisions, as flac."""
    from lhotse import CutSet

    for cut in CutSet.from_manifests(**manifests).trim_to_supervisions(keep_overlapping=False):
        said = cut.supervisions[0]
        if not said.text or cut.duration > WINDOW_SECONDS:
            continue
        out = io.BytesIO()
        soundfile.write(out, cut.resample(SAMPLE_RATE_HZ).load_audio()[0], SAMPLE_RATE_HZ, format="FLAC")
        yield _utterance(said.text, cut.duration, language, source, said.speaker or ""), out.getvalue()


def _utterance(text: str, duration: float, language: str, source: str, speaker: str) -> Utterance:
    return Utterance(audio="clip.flac", duration=duration, text=text.lower(), language=language, source=source,
                     speaker=str(speaker))  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Write shards, and say what is in them."""
    corpora = {"librispeech": librispeech, "voxpopuli": voxpopuli, "fleurs": fleurs, "any": any_set}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=corpora)
    parser.add_argument("folder", help="where it lies; for fleurs any word; for any hf:… or a manifest")
    parser.add_argument("shards", help="an address with one * that ends in .tar")
    parser.add_argument("--split", choices=PARTS, default="train")
    args = parser.parse_args(argv)
    seconds: dict[str, list[float]] = {}

    def told() -> Rows:
        for utterance, audio in corpora[args.corpus](args.folder, args.split):
            seconds.setdefault(utterance.language, []).append(utterance.duration)
            yield utterance, audio

    written = write_shards(told(), args.shards)
    for language, held in sorted(seconds.items()):
        print(f"{args.corpus} {language}: {len(held):,} utterances, {sum(held) / 3600:.1f} h")
    print(f"{len(written)} shards, the last {written[-1] if written else 'never written'}")


if __name__ == "__main__":
    main()
