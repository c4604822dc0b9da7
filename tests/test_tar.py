"""Laws of shards: what other programs wrote is read, wherever it lies, and each member is the bytes that went in."""

import io
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from conftest import random_model

from diffasr.audio import load_audio
from diffasr.errors import DownloadError, ManifestError, OptionError
from diffasr.model import checkpoint
from diffasr.train import loop
from diffasr.train.augment import Augment
from diffasr.train.data import FeatureStore, Utterance, read_manifest
from diffasr.train.recordings import Recordings
from diffasr.train.stages import Recipe
from diffasr.train.tar import addresses, is_shards, read_shards, sound, write_shards

SAYS = [("the cat", "en", 0.3), ("ein hund", "de", 0.5), ("好的", "zh", 0.2), ("no", "en", 0.4), ("ja", "de", 0.1)]


def tone(seconds: float, seed: int) -> bytes:
    """A flac file of noise."""
    out = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))
    soundfile.write(out, samples, 16_000, format="FLAC")
    return out.getvalue()


ROWS = [
    (Utterance(audio="x.flac", duration=seconds, text=text, language=language, speaker=f"s{n}"), tone(seconds, n))
    for n, (text, language, seconds) in enumerate(SAYS)
]


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on the disk, and one in object storage."""
    if request.param == "disk":
        yield str(tmp_path)
        return
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def facts(rows: list[Utterance]) -> list[tuple[str, str, float]]:
    return [(u.text, u.language, u.duration) for u in rows]


def put_tar(address: str, members: dict[str, bytes], mode: str = "w") -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, held in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(held)
            tar.addfile(info, io.BytesIO(held))
    with fsspec.open(address, "wb") as file:
        file.write(out.getvalue())


def test_what_is_written_comes_back_byte_for_byte(place: str) -> None:
    written = write_shards(iter(ROWS), f"{place}/deep/train-*.tar", rows_each=2)
    assert [name.rpartition("/")[2] for name in written] == [f"train-00000{n}.tar" for n in range(3)]
    assert written == [a.replace("memory:///", "memory://") for a in addresses(f"{place}/deep/train-*.tar")]
    read = read_shards(f"{place}/deep/train-*.tar")
    assert facts(read) == SAYS
    assert [u.speaker for u in read] == [f"s{n}" for n in range(5)]
    for utterance, (_, audio) in reversed(list(zip(read, ROWS, strict=True))):  # in any order
        assert sound(utterance.audio) == audio
    assert facts(read_shards(written[1])) == SAYS[2:4], "one shard alone"


def test_webdatasets_own_writer_is_understood(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as out:
        for number, (utterance, audio) in enumerate(ROWS):
            about = {"text": utterance.text, "lang": utterance.language, "duration": utterance.duration}
            out.write({"__key__": f"folder/{number:03d}", "flac": audio, "json": about})
    read = read_shards(str(tmp_path / "a.tar"))
    assert facts(read) == SAYS
    with warnings.catch_warnings(action="ignore"):
        theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sound(u.audio) for u in read] == [row["flac"] for row in theirs]


def test_lhotses_own_writer_is_understood(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        lhotse = pytest.importorskip("lhotse")
        from lhotse.shar import SharWriter
    expected = []
    shar = tmp_path / "shar"
    shar.mkdir()
    with SharWriter(str(shar), fields={"recording": "wav"}, shard_size=2) as out:
        for number, (utterance, audio) in enumerate(ROWS):
            path = tmp_path / f"{number}.flac"
            path.write_bytes(audio)
            recording = lhotse.Recording.from_file(path)
            said = lhotse.SupervisionSegment(
                id=f"s{number}", recording_id=recording.id, start=0, duration=0.05, text=utterance.text,
                language=["English", "de", "zh", "en", "German"][number],
            )  # fmt: skip
            cut = lhotse.MonoCut(id=f"cut.{number}-0", start=0.025, duration=0.05, channel=0, recording=recording,
                                 supervisions=[said])  # fmt: skip
            out.write(cut)
            expected.append(cut.load_audio()[0])
    read = read_shards(str(shar / "cuts.*.jsonl.gz"))
    assert facts(read) == [(text, language, 0.05) for text, language, _ in SAYS]
    for utterance, samples in zip(read, expected, strict=True):
        np.testing.assert_allclose(load_audio(sound(utterance.audio)), samples, atol=1e-4)


def test_plain_text_members_need_a_language_and_no_duration(place: str) -> None:
    put_tar(f"{place}/t.tar", {"a.FLAC": ROWS[0][1], "a.txt": b"the cat", "b.flac": ROWS[3][1], "b.txt": b"no"})
    assert facts(read_shards(f"{place}/t.tar", language="en")) == [SAYS[0], SAYS[3]]
    with pytest.raises(ManifestError, match="lang of en, de"):
        read_shards(f"{place}/t.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.json": b'{"text": "x", "lang": "en"}'}, r"a has no audio, only \.json"),
        ({"a.flac": b"?", "a.json": b"{"}, r"a\.json is not JSON"),
        ({"a.flac": b"?", "a.json": b"[]"}, "not a JSON object"),
        ({"a.flac": b"?", "a.json": b'{"lang": "en"}'}, "needs a text, got None"),
        ({"a.flac": b"?", "a.json": b'{"text": "x", "lang": "it"}'}, "got 'it'"),
        ({"a.flac": b"?", "a.json": b'{"text": "x", "lang": "en"}'}, "no duration is given"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    put_tar(str(tmp_path / "t.tar"), members)
    with pytest.raises(ManifestError, match=message):
        read_shards(str(tmp_path / "t.tar"))


def test_a_cut_without_recording_or_text_is_refused(tmp_path: Path) -> None:
    import gzip

    put_tar(str(tmp_path / "recording.000000.tar"), {"a.flac": ROWS[0][1], "a.json": b"{}"})
    for cut in ({"id": "b", "supervisions": [{}]}, {"id": "a", "supervisions": []}):
        (tmp_path / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(json.dumps(cut).encode() + b"\n"))
        with pytest.raises(ManifestError, match="it needs one of each"):
            read_shards(str(tmp_path / "cuts.000000.jsonl.gz"))


def test_compressed_cut_and_missing_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no shard at"):
        read_shards(str(tmp_path / "*.tar"))
    with pytest.raises(OptionError, match="pip install s3fs"):
        read_shards("nosuch://bucket/a.tar")
    put_tar(str(tmp_path / "z.tar"), {"a.flac": b"1"}, mode="w:gz")
    with pytest.raises(ManifestError, match="without compression"):
        read_shards(str(tmp_path / "z.tar"))
    written = write_shards(iter(ROWS), str(tmp_path / "a*.tar"))
    last = read_shards(written[0])[-1]
    whole = Path(written[0]).read_bytes()
    Path(written[0]).write_bytes(whole[: int(last.audio.partition("#")[2].partition("+")[0]) + 10])
    with pytest.raises(DownloadError, match="gave 10 bytes"):
        sound(last.audio)
    Path(written[0]).unlink()
    with pytest.raises(DownloadError, match="could not be read"):
        sound(last.audio)


@pytest.mark.parametrize("name", ["a.tar", "a-*-*.tar", "a-*.zip"])
def test_shards_need_a_place_for_their_number(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match="one \\*"):
        write_shards(iter(ROWS), str(tmp_path / name))


def test_paths_pass_and_remote_files_are_fetched_whole() -> None:
    assert sound("/some/where.wav") == "/some/where.wav"
    fsspec.filesystem("memory").pipe("/alone.flac", ROWS[0][1])
    assert sound("memory://alone.flac") == ROWS[0][1]


def test_names_tell_shards_from_manifests() -> None:
    kinds: dict[str, Any] = {n: is_shards(n) for n in ("s3://b/a-*.tar", "x/cuts.*.jsonl.gz", "a.jsonl", "a.tar.gz")}
    assert kinds == {"s3://b/a-*.tar": True, "x/cuts.*.jsonl.gz": True, "a.jsonl": False, "a.tar.gz": False}


def put_manifest(place: str) -> str:
    """The clips as files with a manifest beside them."""
    lines = []
    for number, (utterance, audio) in enumerate(ROWS):
        with fsspec.open(f"{place}/clips/{number}.flac", "wb") as file:
            file.write(audio)
        row = {"audio_filepath": f"clips/{number}.flac", "duration": utterance.duration, "text": utterance.text}
        lines.append(json.dumps(row | {"lang": utterance.language}) + "\n")
    with fsspec.open(f"{place}/train.jsonl", "wb") as file:
        file.write("".join(lines).encode())
    return f"{place}/train.jsonl"


def test_a_manifest_in_object_storage_is_one_on_the_disk(place: str, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir(exist_ok=True)
    read = read_manifest(put_manifest(place))
    assert facts(read) == SAYS
    for utterance, (_, audio) in zip(read, ROWS, strict=True):
        np.testing.assert_array_equal(load_audio(sound(utterance.audio)), load_audio(audio))


def test_features_of_shards_are_those_of_files(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_shards(iter(ROWS), "memory://features/a-*.tar", rows_each=2)
    encoder = random_model().network.encoder
    stores = [
        FeatureStore.build(read_manifest(place), encoder, tmp_path / name)
        for name, place in (("files", put_manifest(str(tmp_path))), ("shards", "memory://features/a-*.tar"))
    ]
    assert (tmp_path / "files" / "frames.f16").read_bytes() == (tmp_path / "shards" / "frames.f16").read_bytes()
    assert facts(stores[0].utterances) == facts(stores[1].utterances)


def test_a_run_on_shards_is_the_run_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_board", lambda out: None)
    monkeypatch.setattr(loop, "_look", lambda *_: {})
    (tmp_path / "clips").mkdir()
    checkpoint.save(tmp_path / "init", random_model())
    write_shards(iter(ROWS), "memory://run/a-*.tar", rows_each=2)
    (tmp_path / "recipe.toml").write_text(
        f'''
        name = "shards"
        init = "init"
        manifests = ["memory://run/a-*.tar"]
        dev = "{put_manifest(str(tmp_path))}"
        [[stage]]
        name = "ctc"
        steps = 4
        seconds = 1
        diffusion = 0
        ctc = 1
        rates = {{ projector = 1e-2 }}
        '''
    )
    shards = Recipe.load(tmp_path)
    files = Recipe(**vars(shards) | {"manifests": (tmp_path / "train.jsonl",)})
    runs = [loop.train(recipe, tmp_path / f"out{n}") for n, recipe in enumerate((shards, files))]
    a, b = (checkpoint.read_weights(run / "model.safetensors") for run in runs)
    assert all(np.array_equal(a[name], b[name]) for name in b)


def test_a_whole_window_is_heard_where_the_model_wants_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    manifest = put_manifest(str(tmp_path))
    dice = np.random.default_rng(0)
    short, whole = (Recordings(manifest, Augment(), mels=8, whole=whole) for whole in (False, True))
    assert short.mel((0,), dice).shape == (8, 30) and whole.mel((0,), dice).shape == (8, 3000)
    assert short.spans[0] == (0, 15) and whole.spans[0] == (0, 1500)
