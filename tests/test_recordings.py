"""Manifests as sound: a clip has the frames of its length, joined clips stand in a row and fit, and dice decide."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import MELS, tiny_tokenizer

from diffasr.audio import log_mel
from diffasr.train.augment import Augment
from diffasr.train.data import Item, Mel, collate, needed_slots, read_items
from diffasr.train.recordings import PAUSES, Recordings, joined

TOKENIZER = tiny_tokenizer()
SAYS = [
    ("the cat", "en", 1.0),
    ("a dog", "en", 1.5),
    ("no", "en", 0.5),
    ("ein hund", "de", 1.2),
    ("ja", "de", 0.6),
    ("ab", "zh", 0.7),
    ("cd", "zh", 0.9),
]


def write_manifest(folder: Path, says: list[tuple[str, str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (text, language, seconds) in enumerate(says):
        samples = np.random.default_rng(number).normal(0, 0.1, round(seconds * 16_000))
        soundfile.write(folder / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        row = {"audio_filepath": f"{number}.wav", "duration": seconds, "text": text, "lang": language}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "train.jsonl"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("sound"), SAYS)


@pytest.fixture(scope="module")
def items(manifest: Path) -> list[Item]:
    return read_items([Recordings(manifest, Augment(), mels=MELS)], TOKENIZER, max_tokens=99)


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_clip_is_its_own_log_mel(manifest: Path) -> None:
    natural = Recordings(manifest, Augment(), mels=MELS)
    whole = Recordings(manifest, Augment(), mels=MELS, whole=True)
    assert [span for _, span in natural.spans] == [round(50 * seconds) for *_, seconds in SAYS]
    assert {span for _, span in whole.spans} == {1500}
    for number, (*_, seconds) in enumerate(SAYS):
        sound, _ = soundfile.read(natural.utterances[number].audio, dtype="float32")
        mel = natural.mel([number], dice())
        assert mel.shape == (MELS, round(100 * seconds))
        torch.testing.assert_close(mel, torch.from_numpy(log_mel(sound, mels=MELS)))
        assert whole.mel([number], dice()).shape == (MELS, 3000)


def test_what_is_longer_than_a_window_is_left_out(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [("the cat", "en", 0.5), ("a dog", "en", 30.5)])
    assert [u.text for u in Recordings(path, Augment()).utterances] == ["the cat"]


def test_several_clips_stand_in_a_row_with_a_pause(manifest: Path) -> None:
    store = Recordings(manifest, Augment(), mels=MELS)
    sizes = []
    for seed in range(8):
        mel = store.mel([0, 2, 1], dice(seed))
        pauses = mel.shape[1] / 100 - (1.0 + 0.5 + 1.5)
        assert 2 * PAUSES[0] - 0.02 <= pauses <= 2 * PAUSES[1] + 0.02
        torch.testing.assert_close(mel[:, :90], store.mel([0], dice())[:, :90], rtol=0.05, atol=0.05)
        sizes.append(mel.shape[1])
    assert len(set(sizes)) > 1
    assert store.mel([1] * 40, dice()).shape[1] == 3000, "never longer than a window"


def test_the_options_are_those_of_augment_and_the_dice_decide(manifest: Path) -> None:
    plain = Recordings(manifest, Augment(), mels=MELS)
    noisy = Recordings(manifest, Augment(noise=1.0), mels=MELS)
    assert torch.equal(noisy.mel([0], dice(1)), noisy.mel([0], dice(1)))
    assert not torch.equal(noisy.mel([0], dice(1)), noisy.mel([0], dice(2)))
    assert not torch.equal(noisy.mel([0], dice(1)), plain.mel([0], dice(1)))


def test_a_batch_is_changed_row_by_row_with_its_seed(manifest: Path) -> None:
    store = Recordings(manifest, Augment(noise=1.0), mels=MELS)
    chosen = read_items([store], TOKENIZER, max_tokens=99)[:3]
    first, again, other = (collate(chosen, end=TOKENIZER.end, seed=(5, epoch)).speech for epoch in (0, 0, 1))
    assert isinstance(first, Mel) and isinstance(again, Mel) and isinstance(other, Mel)
    assert first.lengths.tolist() == [100, 150, 50]
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    torch.testing.assert_close(first.features[1, :, :150], store.mel([1], np.random.default_rng((5, 0, 1))))


def test_joined_items_fit_and_say_what_their_clips_say(items: list[Item]) -> None:
    made = joined(items, TOKENIZER, share=4.0, seed=3, max_tokens=99)
    assert len(made) == 4 * len(items)
    for item in made:
        clips = [item.store.utterances[n] for n in (item.number, *item.more)]
        assert len(clips) > 1
        assert {c.language for c in clips} == {item.language}
        space = "" if item.language == "zh" else " "
        assert list(item.tokens) == TOKENIZER.encode(space.join(c.text for c in clips))
        assert list(item.pieces) == TOKENIZER.pieces(space.join(c.text for c in clips))
        pauses = item.seconds - sum(c.duration for c in clips)
        assert pauses == pytest.approx(sum(PAUSES) / 2 * (len(clips) - 1))
        assert sum(c.duration for c in clips) * 1.1 + PAUSES[1] * (len(clips) - 1) <= 30.0
        assert needed_slots(item.pieces) <= item.seconds * 12.5
    assert {item.language for item in made} == {"en", "de", "zh"}


def test_the_seed_chooses_and_the_share_counts(items: list[Item]) -> None:
    makes = [[(i.number, i.more) for i in joined(items, TOKENIZER, share=2.0, seed=seed, max_tokens=99)]
             for seed in (1, 1, 2)]  # fmt: skip
    assert makes[0] == makes[1] != makes[2]
    assert joined(items, TOKENIZER, share=0.0, seed=1, max_tokens=99) == []
    assert all(len(i.tokens) <= 12 for i in joined(items, TOKENIZER, share=1.0, seed=1, max_tokens=12))


def test_clips_that_never_fit_together_end_the_search(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [("the cat", "en", 16.0), ("a dog", "en", 17.0)])
    long = read_items([Recordings(path, Augment(), mels=MELS)], TOKENIZER, max_tokens=99)
    assert len(long) == 2
    assert joined(long, TOKENIZER, share=1.0, seed=0, max_tokens=99) == []
