"""Test sets: every public layout gives the same clips, and whatever is missing is named with its remedy."""

import io
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, ClassLabel, Features, Value

from diffasr.audio import load_audio
from diffasr.errors import DownloadError, ManifestError, OptionError
from diffasr.evaluate.sets import BRANCH, CONFIGS, LIBRISPEECH, REPOSITORIES, Clip, EvaluationSet, read_set
from diffasr.text import LANGUAGES

SECONDS = 0.25
WORDS = Value("string")


def sound(number: int, *, kind: str = "WAV", rate_hz: int = 16_000) -> bytes:
    """A tone of its own for each number, in a file."""
    file = io.BytesIO()
    times = np.arange(round(SECONDS * rate_hz)) / rate_hz
    soundfile.write(file, np.sin(times * 500 * (number + 1)).astype(np.float32) / 4, rate_hz, format=kind)
    return file.getvalue()


def librispeech(number: int) -> dict[str, Any]:
    name = f"1089-134686-{number:04}"
    return {
        "file": f"{name}.flac",
        "audio": {"bytes": sound(number, kind="FLAC"), "path": f"{name}.flac"},
        "text": f"HE HOPED {number}",
        "speaker_id": 1089,
        "chapter_id": 134686,
        "id": name,
    }


def fleurs(number: int) -> dict[str, Any]:
    return {
        "id": 1660,  # that of the sentence
        "num_samples": 4000,
        "path": f"/root/.cache/downloads/extracted/a/{number}.wav",
        "audio": {"bytes": sound(number), "path": f"test/{number}.wav"},
        "transcription": f"er hoffte {number}",
        "raw_transcription": f"Er hoffte, {number}.",
        "gender": 1,
        "lang_id": 0,
        "language": "German",
    }


def voxpopuli(number: int) -> dict[str, Any]:
    return {
        "audio_id": f"20180613-0900-{number}",
        "language": 0,
        "audio": {"bytes": sound(number), "path": f"{number}.wav"},
        "raw_text": "",
        "normalized_text": f"he hoped {number}",
        "gender": "female",
        "speaker_id": "None" if number else "124737",
        "is_gold_transcript": True,
        "accent": "None",
    }


def common_voice(number: int) -> dict[str, Any]:
    name = f"common_voice_hi_{number}.mp3"
    return {
        "client_id": f"voice {number}",
        "path": f"hi_test_0/{name}",
        "audio": {"bytes": sound(number, kind="MP3", rate_hz=48_000), "path": name},
        "sentence": f"वह चाय {number}",
        "locale": "hi",
        "segment": "",
    }


FEATURES = {
    librispeech: {"audio": Audio(16_000), "speaker_id": Value("int64"), "chapter_id": Value("int64")},
    fleurs: {
        "id": Value("int32"),
        "num_samples": Value("int32"),
        "audio": Audio(16_000),
        "gender": ClassLabel(names=["male", "female", "other"]),
        "lang_id": ClassLabel(names=["de_de"]),
    },
    voxpopuli: {"language": ClassLabel(names=["en"]), "audio": Audio(16_000), "is_gold_transcript": Value("bool")},
    common_voice: {"audio": Audio(48_000)},
}
Row = Callable[[int], dict[str, Any]]


def write(file: Path, rows: list[dict[str, Any]], kinds: dict[str, Any] | None = None) -> None:
    """Rows as a Parquet file with the hub's description of its columns; without ``kinds``, as anyone's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = None if kinds is None else Features({name: kinds.get(name, WORDS) for name in rows[0]}).arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("spec", "inner", "row", "language", "identity", "text", "speakers"),
    [
        ("librispeech:test-clean", "clean/test", librispeech, "en", "1089-134686-0002", "HE HOPED 2", ["1089"] * 3),
        ("librispeech:test-other", "other/test", librispeech, "en", "1089-134686-0002", "HE HOPED 2", ["1089"] * 3),
        ("fleurs:de:test", "de_de/test", fleurs, "de", "2.wav", "er hoffte 2", [""] * 3),
        ("voxpopuli:en:test", "en/partial-test", voxpopuli, "en", "20180613-0900-2", "he hoped 2", ["124737", "", ""]),
        (
            "common_voice:hi:test", "hi/test", common_voice, "hi", "common_voice_hi_2.mp3", "वह चाय 2",
            ["voice 0", "voice 1", "voice 2"],
        ),
    ],
)  # fmt: skip
def test_the_four_public_sets_in_their_own_layouts(
    tmp_path: Path, spec: str, inner: str, row: Row, language: str, identity: str, text: str, speakers: list[str]
) -> None:
    place = tmp_path / inner
    write(place / "0000.parquet", [row(0), row(1)], FEATURES[row])
    write(place / "0001.parquet", [row(2)], FEATURES[row])
    write(tmp_path / "xx" / "train" / "0000.parquet", [row(7)], FEATURES[row])
    found = read_set(f"hf:{spec}@{tmp_path}")
    assert found.name == spec
    assert [clip.speaker for clip in found.clips] == speakers
    last = found.clips[2]
    assert (last.id, last.text, last.language, last.source) == (identity, text, language, spec)
    for number, clip in enumerate(found.clips):
        heard = load_audio(clip.audio)
        assert np.array_equal(heard, load_audio(row(number)["audio"]["bytes"]))
        assert clip.duration == pytest.approx(len(heard) / 16_000, abs=1e-3)
    assert read_set(f"hf:{spec}@{tmp_path}", limit=2).clips == found.clips[:2]


def test_each_set_has_a_home_and_our_languages() -> None:
    assert set(REPOSITORIES) == {"librispeech", *CONFIGS}
    assert [sorted(CONFIGS[name]) for name in ("fleurs", "common_voice")] == [sorted(LANGUAGES)] * 2
    assert {"test-clean", "test-other"} < set(LIBRISPEECH)


def test_any_other_dataset_is_read_by_the_usual_column_names(tmp_path: Path) -> None:
    rows = [
        {"audio": {"bytes": sound(n), "path": None}, "text": text, "lang": lang, "speaker": n}
        for n, (text, lang) in enumerate([("one", "en_US"), ("  ", "en"), ("zwei", "German"), ("三", "cmn_hans_cn")])
    ]
    write(tmp_path / "default" / "test-00000-of-00001.parquet", rows)
    clips = read_set(f"hf:{tmp_path}:default:test").clips
    assert [(c.id, c.text, c.language, c.speaker) for c in clips] == [
        ("000000", "one", "en", "0"), ("000002", "zwei", "de", "2"), ("000003", "三", "zh", "3"),
    ], "a row without a text is left out"  # fmt: skip
    told = read_set(f"hf:{tmp_path}:default:test:fr").clips
    assert {clip.language for clip in told} == {"fr"}, "what the call says counts"
    write(tmp_path / "es_419" / "test" / "0000.parquet", rows)
    assert {clip.language for clip in read_set(f"hf:{tmp_path}:es_419:test").clips} == {"es"}, "then the config's name"


def test_a_row_may_name_a_file_instead_of_holding_it(tmp_path: Path) -> None:
    file = tmp_path / "one.wav"
    file.write_bytes(sound(3))
    row = {"audio": {"bytes": None, "path": str(file)}, "text": "one"}
    write(tmp_path / "en" / "test" / "0000.parquet", [row], {"audio": Audio()})
    (clip,) = read_set(f"hf:{tmp_path}:en:test").clips
    assert (clip.audio, clip.id, clip.duration) == (str(file), "one.wav", SECONDS)


def test_a_file_whose_header_says_no_length_is_decoded(tmp_path: Path) -> None:
    opus = Path(__file__).parents[1] / "samples" / "en.opus"
    row = {"audio": {"bytes": opus.read_bytes(), "path": "en.opus"}, "text": "one"}
    file = io.BytesIO()
    with av.open(file, mode="w", format="adts") as out:
        stream = out.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    write(
        tmp_path / "en" / "test" / "0000.parquet",
        [row, {"audio": {"bytes": file.getvalue(), "path": "a.aac"}, "text": "two"}],
        {"audio": Audio()},
    )
    for clip in read_set(f"hf:{tmp_path}:en:test").clips:
        assert clip.duration == pytest.approx(len(load_audio(clip.audio)) / 16_000, abs=1e-3)


def manifest(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "dev.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_manifest_is_a_set_too_and_the_limit_is_a_language(tmp_path: Path) -> None:
    common = {"duration": 1.0, "text": "one", "source": "here"}
    path = manifest(
        tmp_path,
        {"audio_filepath": "clips/a.wav", "lang": "en", "speaker": "s1", **common},
        {"audio_filepath": "clips/a.wav", "lang": "en", **common},
        {"audio_filepath": "clips/b.wav", "lang": "en", **common},
        {"audio_filepath": "../c.wav", "lang": "zh", **common},
        {"audio_filepath": "silence.wav", "lang": "zh", **common, "text": " "},
    )
    found = read_set(str(path))
    assert found.name == "dev"
    assert [clip.id for clip in found.clips] == ["clips/a.wav", "clips/a.wav#2", "clips/b.wav", "../c.wav"]
    assert found.clips[0] == Clip(
        id="clips/a.wav", audio=str((tmp_path / "clips" / "a.wav").resolve()), duration=1.0, text="one", language="en",
        speaker="s1", source="here",
    )  # fmt: skip
    assert [clip.id for clip in read_set(str(path), limit=1).clips] == ["clips/a.wav", "../c.wav"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:voxpopuli:hi:test", "voxpopuli has no language 'hi' for us: it has en, de, fr, es"),
        ("hf:voxpopuli:zh:test", "voxpopuli has no language 'zh'"),
        ("hf:fleurs:de:dev", "no split 'dev': choose one of train, validation, test"),
        ("hf:librispeech:test", "test-clean, test-other"),
        ("hf:librispeech:clean:test", "no set is called hf:librispeech:clean:test"),
        ("hf:nonsense", "no set is called hf:nonsense"),
        ("hf:owner/name:config:test:xx", "'xx' in hf:owner/name:config:test:xx is none of our languages"),
        ("fleurs:de:test", "hf:fleurs:de:test"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_would(spec: str, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_set(spec)
    assert words in str(caught.value)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="limit must be at least 1, or None for all recordings, got 0"):
        read_set("hf:fleurs:de:test", limit=0)


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(DownloadError) as caught:
        read_set("hf:librispeech:test-clean")
    for word in ("'openslr/librispeech_asr'", "network", "huggingface-cli login", "manifest (.jsonl)"):
        assert word in str(caught.value)


def test_only_the_split_is_fetched_and_a_missing_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fetched(place: str, **options: Any) -> str:
        calls.append((place, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    with pytest.raises(DownloadError, match="'google/fleurs' has no de_de/test on its branch refs/convert/parquet"):
        read_set("hf:fleurs:de:test")
    write(tmp_path / "de_de" / "test" / "0000.parquet", [fleurs(0)], FEATURES[fleurs])
    assert len(read_set("hf:fleurs:de:test").clips) == 1
    assert len(read_set("hf:fleurs:de:test@other/fleurs").clips) == 1, "the same layout, elsewhere on the hub"
    assert [place for place, _ in calls] == ["google/fleurs", "google/fleurs", "other/fleurs"]
    assert all(options["revision"] == BRANCH and options["repo_type"] == "dataset" for _, options in calls)
    assert calls[0][1]["allow_patterns"] == [
        "de_de/test/*.parquet", "de_de/partial-test/*.parquet", "de_de/test-*.parquet",
    ]  # fmt: skip


def test_a_folder_that_is_no_such_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has none of en/test/\*\.parquet"):
        read_set(f"hf:{tmp_path}:en:test")
    write(tmp_path / "en" / "test" / "0000.parquet", [{"sound": "x", "text": "y"}])
    with pytest.raises(ManifestError, match="has the columns sound, text: it needs audio and one of transcription"):
        read_set(f"hf:{tmp_path}:en:test")
    write(tmp_path / "x" / "test" / "0000.parquet", [{"audio": {"bytes": sound(0), "path": "a"}, "text": "y"}])
    with pytest.raises(ManifestError, match=r"row 0 .* put the language behind the split, as in hf:.*:x:test:en"):
        read_set(f"hf:{tmp_path}:x:test")


def test_a_set_without_texts_or_with_twin_ids_is_refused() -> None:
    clip = Clip(id="a", audio=b"", duration=1.0, text="one", language="en")
    with pytest.raises(ManifestError, match="the set empty has no recording with a text"):
        EvaluationSet(name="empty", clips=())
    with pytest.raises(ManifestError, match="the set twins has 2 recordings with the id 'a'"):
        EvaluationSet(name="twins", clips=(clip, clip))


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError, match=r"needs datasets: pip install 'diffasr\[evaluate\]'"):
        read_set("hf:fleurs:de:test")
