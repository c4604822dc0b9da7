"""Manifests, feature stores and batches: nothing is lost, nothing comes twice, faults are named."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import WIDTH, random_model, spoken, write_store
from hypothesis import given
from hypothesis import strategies as st

from diffasr.audio import log_mel
from diffasr.errors import ManifestError
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.loaded import Model
from diffasr.text import LANGUAGES, Tokenizer
from diffasr.train.data import FeatureStore, Item, Utterance, collate, deal, read_items, read_manifest

LINE = {"audio_filepath": "clips/a.wav", "duration": 1.5, "text": "the cat", "lang": "en"}


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_a_manifest_is_read_line_by_line(tmp_path: Path) -> None:
    odd = "two\u2028lines\x85in one text"  # not line ends in JSON lines, though str.splitlines() thinks so
    path = manifest(tmp_path, LINE, LINE | {"text": odd, "lang": "hi", "source": "x", "speaker": "7"}, "")
    first, second = read_manifest(path)
    assert first == Utterance(
        audio=str((tmp_path / "clips" / "a.wav").resolve()), duration=1.5, text="the cat", language="en"
    )
    assert (second.text, second.language, second.source, second.speaker) == (odd, "hi", "x", "7")
    (unknown,) = read_manifest(manifest(tmp_path, LINE | {"speaker": None, "source": None}))
    assert (unknown.speaker, unknown.source) == ("", "")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        [1, 2],
        {k: v for k, v in LINE.items() if k != "text"},
        LINE | {"duration": "long"},
        LINE | {"lang": "xx"},
        LINE | {"lang": ["en"]},
        LINE | {"audio_filepath": None},
        LINE | {"text": None},
    ],
    ids=str,
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: object) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.jsonl line 3: "):
        read_manifest(manifest(tmp_path, LINE, LINE, line, LINE))


def test_a_manifest_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(ManifestError, match=r"old\.jsonl is not UTF-8"):
        read_manifest(tmp_path / "old.jsonl")


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest at"):
        read_manifest(tmp_path / "manifest.jsonl")
    with pytest.raises(ManifestError):
        read_manifest(manifest(tmp_path))


def record(folder: Path, seconds: list[float]) -> list[Utterance]:
    """Noise of given lengths on disk, as utterances."""
    found = []
    for number, length in enumerate(seconds):
        path = folder / f"{number}.wav"
        noise = np.random.default_rng(number).standard_normal(round(length * 16_000))
        soundfile.write(path, (0.1 * noise).clip(-1, 1), 16_000)
        found.append(Utterance(audio=str(path), duration=length, text="the cat", language="en"))
    return found


def frames_by_name(store: FeatureStore) -> dict[str, torch.Tensor]:
    return {Path(u.audio).name: store.frames(n) for n, u in enumerate(store.utterances)}


@pytest.mark.parametrize("padded", [False, True])
def test_a_store_holds_what_the_encoder_hears(model: Model, tmp_path: Path, padded: bool) -> None:
    encoder = model.network.encoder
    utterances = record(tmp_path, [0.93, 0.31, 0.62])
    store = FeatureStore.build(utterances, encoder, tmp_path / "store", padded=padded)
    assert {u.audio for u in store.utterances} == {u.audio for u in utterances}
    assert len({id(u) for u in store.utterances}) == 3
    found = frames_by_name(store)
    for utterance in utterances:
        samples, _ = soundfile.read(utterance.audio, dtype="float32")
        mel = torch.from_numpy(log_mel(samples, mels=8, padded=padded))[None]
        expected = encoder(mel, torch.tensor([mel.shape[2]]))[0]
        count = int(utterance.duration * 50 + 0.5) if padded else int(WhisperEncoder.frames(torch.tensor(mel.shape[2])))
        frames = found[Path(utterance.audio).name]
        assert frames.shape == (count, WIDTH)
        assert frames.dtype == torch.float32
        assert (frames - expected[:count]).square().mean().sqrt() < 0.02, "float16 on disk, bfloat16 on the way"


def test_a_build_goes_on_where_it_was_interrupted(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, utterances = model.network.encoder, record(tmp_path, [0.2, 0.3, 0.4])
    whole = frames_by_name(FeatureStore.build(utterances, encoder, tmp_path / "whole"))
    place = tmp_path / "parts"
    FeatureStore.build(utterances[:2], encoder, place)
    with (place / "frames.f16").open("ab") as frames, (place / "index.jsonl").open("ab") as index:
        frames.write(b"\x00" * 777)  # of an utterance that was being written when the machine went down
        index.write('{"utterance": {"audio": "ü'.encode()[:-1])
    assert len(FeatureStore(place).utterances) == 2

    heard: list[int] = []
    plain = WhisperEncoder.forward
    monkeypatch.setattr(WhisperEncoder, "forward", lambda self, mel, n: heard.append(len(mel)) or plain(self, mel, n))
    store = FeatureStore.build(utterances, encoder, place)
    assert heard == [1], "what is there is not encoded again"
    for name, frames in frames_by_name(store).items():
        torch.testing.assert_close(frames, whole[name], rtol=0.02, atol=0.02)
    assert FeatureStore.build(utterances, encoder, place).spans == store.spans
    assert heard == [1]


def test_broken_and_over_long_recordings_are_reported_and_left_out(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, long, lying = record(tmp_path, [0.2, 0.9, 1.1])
    lying = Utterance(**(asdict(lying) | {"duration": 0.1}))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    broken = Utterance(audio=str(tmp_path / "broken.wav"), duration=0.2, text="x", language="en")
    store = FeatureStore.build([good, long, lying, broken], model.network.encoder, tmp_path / "s", max_seconds=0.5)
    assert [u.audio for u in store.utterances] == [good.audio]
    said = capsys.readouterr().out
    assert all(f"left out: {u.audio}" in said for u in (long, lying, broken))
    with pytest.raises(ManifestError, match="none of its recordings"):
        FeatureStore.build([broken], model.network.encoder, tmp_path / "empty")
    with pytest.raises(ManifestError, match="no features at"):
        FeatureStore(tmp_path / "nowhere")


def test_any_text_survives_the_index(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [("a\u2028b\x85c", "en"), ("ja", "de")], tokenizer)
    assert [u.text for u in store.utterances] == ["a\u2028b\x85c", "ja"]


def test_items_have_text_and_no_more_labels_than_slots(tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [("the cat", "en"), ("", "en"), ("abcdefgh", "de")], tokenizer)
    (item, long) = read_items([store], tokenizer, max_tokens=8)
    assert (item.number, item.language, item.tokens) == (0, "en", tuple(tokenizer.encode("the cat")))
    assert item.seconds == len(store.frames(0)) / 50
    assert [i.number for i in read_items([store, store], tokenizer, max_tokens=7)] == [0, 0]
    store.spans[2] = (store.spans[2][0], 4 * 8 - 1)
    assert long not in read_items([store], tokenizer, max_tokens=8), "eight labels need eight slots"


def items_of(seconds: list[float], languages: str = "en") -> list[Item]:
    names = languages.split()
    return [
        Item(store=None, number=n, tokens=(1,), pieces=(1,), language=names[n % len(names)], seconds=s)  # type: ignore[arg-type]
        for n, s in enumerate(seconds)
    ]


@given(st.lists(st.floats(0.5, 30), min_size=1, max_size=60), st.floats(5, 100), st.integers(0, 3))
def test_an_epoch_deals_every_item_once_within_the_seconds(seconds: list[float], limit: float, epoch: int) -> None:
    items = items_of(seconds)
    batches = deal(items, epoch=epoch, seed=1, seconds=limit)
    assert sorted(i.number for batch in batches for i in batch) == list(range(len(items)))
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or max(i.seconds for i in batch) * len(batch) <= limit
    assert batches == deal(items, epoch=epoch, seed=1, seconds=limit)
    assert [i.number for i in items] == list(range(len(items))), "the argument keeps its order"


def test_epochs_and_seeds_differ_and_batches_are_of_like_length() -> None:
    items = items_of([1 + n % 29 for n in range(300)])
    deals = [deal(items, epoch=e, seed=s, seconds=60) for e, s in ((0, 0), (1, 0), (0, 1))]
    assert deals[0] != deals[1] != deals[2] != deals[0]
    for batches in deals:
        waste = sum(max(i.seconds for i in b) * len(b) for b in batches) / sum(i.seconds for i in items)
        assert waste < 1.25
        sizes = [b[0].seconds for b in batches]
        assert sizes != sorted(sizes), "short and long batches are mixed"


def test_shares_repeat_what_is_rare_and_cut_what_is_common() -> None:
    items = items_of([2.0] * 90, "en en en en en en en en de fr")  # 72 en, 9 de, 9 fr
    counts: Counter[str] = Counter()
    seen = Counter(i.number for b in deal(items, epoch=0, seed=0, seconds=20, shares={"en": 1.0, "de": 2.0}) for i in b)
    for number, times in seen.items():
        counts[items[number].language] += times
    assert counts == {"en": 30, "de": 60}
    assert {seen[i.number] for i in items if i.language == "de"} == {6, 7}, "repeated evenly"
    with pytest.raises(ManifestError, match=r"hi a share of 1.0"):
        deal(items, epoch=0, seed=0, seconds=20, shares={"hi": 1.0})


def test_collate_pads_with_silence_and_ends(store: FeatureStore, tokenizer: Tokenizer) -> None:
    items = read_items([store], tokenizer, max_tokens=99)[2:6]
    batch = collate(items, end=tokenizer.end)
    assert batch.tokens.shape == (4, int(batch.lengths.max()))
    for row, item in enumerate(items):
        count, heard = len(item.tokens), spoken(store.utterances[item.number].text, tokenizer).half().float()
        assert batch.tokens[row].tolist() == [*item.tokens, *[tokenizer.end] * (batch.tokens.shape[1] - count)]
        assert batch.lengths[row] == count
        assert torch.equal(batch.speech.frames[row, : batch.speech.lengths[row]], heard)
        assert batch.speech.frames[row, batch.speech.lengths[row] :].abs().sum() == 0
        assert list(LANGUAGES)[batch.languages[row]] == item.language


def test_a_store_is_read_only(store: FeatureStore) -> None:
    frames = store.frames(0)
    frames += 1
    assert not torch.equal(store.frames(0), frames), "frames are a copy"
    assert random_model().config.encoder.width == store.frames(0).shape[1]
