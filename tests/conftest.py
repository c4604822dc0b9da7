"""Small things to test with: a tokenizer of forty tokens, random models of width 32, a Whisper on disk, speech."""

import copy
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import zhconv
from hypothesis import settings
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from diffasr.model.checkpoint import build
from diffasr.model.config import BLIND, HANDICAP, PACE, DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.model.whisper import WhisperNetwork
from diffasr.text import LANGUAGES, PREFIX_TOKENS, Tokenizer
from diffasr.train import loop
from diffasr.train.data import FeatureStore, Utterance

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

settings.register_profile("diffasr", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("diffasr")

with warnings.catch_warnings(action="ignore", category=ResourceWarning):
    zhconv.convert("漢", "zh-cn")  # it reads its table on the first call, and leaves the file open

WIDTH, MELS = 32, 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "a")]  # Ġ is a space
SPECIALS = [*PREFIX_TOKENS, *(f"<|{code}|>" for code in LANGUAGES)]
VOCABULARY = len(LETTERS) + 1 + len(MERGES) + len(SPECIALS)  # 40
FRAMES_A_TOKEN = 8  # two CTC slots: room for a blank between equal neighbours

TIMES = ("seconds", "waited")
"""What differs between two equal runs in a training log."""

ON_CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("default"),  # of drivers and kernels, which are not ours
    pytest.mark.usefixtures("without_tf32"),
]
"""Marks of what needs a GPU."""


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions without TF32, which is their default, and no tensorboard."""
    monkeypatch.setattr(loop, "_board", lambda out: None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE of lower-case letters, three merges and every special token."""
    tokens = ["Ġ", *LETTERS, *(left + right for left, right in MERGES)]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    return Tokenizer(backend)


def random_model(seed: int = 0) -> Model:
    """An untrained network, small enough for a step in milliseconds."""
    config = ModelConfig(
        name="tiny",
        encoder=EncoderConfig(mels=MELS, width=WIDTH, heads=2, layers=2, hidden=64),
        projector=ProjectorConfig(hidden=64, strides=2),
        decoder=DecoderConfig(vocabulary=VOCABULARY, width=WIDTH, heads=2, layers=2, hidden=64, positions=200),
    )
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    network = build(config, tokenizer).eval().requires_grad_(False)
    return Model(network=network, tokenizer=tokenizer, config=config)


def wake(model: Model) -> Model:
    """Give the layers that start at zero some weight, in place, so that conditioning has an effect."""
    torch.manual_seed(1)
    conditioning = model.network.decoder.conditioning
    for layer in (conditioning.own, conditioning.belief, conditioning.hint):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return model


def blind(model: Model) -> WhisperNetwork:
    """A copy that sees no later place and is told nothing but the text."""
    network = copy.deepcopy(model.network)
    network.decoder.future.data.fill_((HANDICAP - BLIND) / PACE)
    told = network.decoder.conditioning
    for layer in (told.own, told.belief, told.hint):
        layer.weight.data.zero_()
    return network.requires_grad_(False)


def random_speech(lengths: list[int], seed: int = 1) -> Speech:
    """Frames as the encoder would give them: random, zero past each row's length."""
    frames = torch.randn(len(lengths), max(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Speech(frames=frames * real[..., None], lengths=torch.tensor(lengths))


def row_alone(speech: Speech, row: int) -> Speech:
    """One row of a batch without its padding."""
    length = speech.lengths[row : row + 1]
    return Speech(frames=speech.frames[row : row + 1, : int(length)], lengths=length)


def spoken(text: str, tokenizer: Tokenizer) -> Tensor:
    """Frames (T, WIDTH) that say ``text`` plainly: each token a fixed random vector, held for a while."""
    sounds = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(7))
    return sounds[torch.tensor(tokenizer.encode(text), dtype=torch.long)].repeat_interleave(FRAMES_A_TOKEN, dim=0)


def write_store(folder: Path, says: list[tuple[str, str]], tokenizer: Tokenizer) -> FeatureStore:
    """A feature store of (text, language) utterances, written by hand in the documented format."""
    folder.mkdir(parents=True)
    start, rows, frames = 0, [], []
    for number, (text, language) in enumerate(says):
        heard = spoken(text, tokenizer)
        item = Utterance(audio=f"{number}.wav", duration=len(heard) / 50, text=text, language=language)
        rows.append({"utterance": asdict(item), "start": start, "count": len(heard), "width": WIDTH})
        start += len(heard)
        frames.append(heard.half().numpy())
    (folder / "frames.f16").write_bytes(b"".join(f.tobytes() for f in frames))
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return FeatureStore(folder)


def tiny_whisper(*, mels: int = MELS, positions: int = 60) -> "WhisperForConditionalGeneration":
    """transformers' own Whisper with random weights, large enough that logits differ visibly."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration  # seconds that most tests need not wait

    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=mels,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=positions,
        max_target_positions=64,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    return WhisperForConditionalGeneration(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model() -> Model:
    """A random model that tests share and must not change."""
    return random_model()


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("whisper")
    tiny_whisper().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> FeatureStore:
    """Eight short utterances in two languages."""
    says = [
        ("the cat", "en"), ("a dog", "en"), ("say them", "en"), ("no", "en"),
        ("ein hund", "de"), ("die katze", "de"), ("ja", "de"), ("das haus", "de"),
    ]  # fmt: skip
    return write_store(tmp_path_factory.mktemp("data") / "store", says, tokenizer)
