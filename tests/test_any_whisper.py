"""Every published layout of Whisper becomes a denoiser that trains, and starts as the Whisper that it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import random_model
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from diffasr.cli import main
from diffasr.errors import ModelError
from diffasr.model import checkpoint
from diffasr.train import loop
from diffasr.train.start import from_any_whisper, kind_of, start

CPU = torch.device("cpu")
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>"]
TASKS = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
CODES = ["en", "zh", "de", "es", "fr", "hi"]

# Name: mel bands, encoder layers, decoder layers, heads, tokens (openai/whisper-*, config.json). Widths are cut.
LAYOUTS = {
    "tiny": (80, 4, 4, 6, 51_865),
    "base": (80, 6, 6, 8, 51_865),
    "small": (80, 12, 12, 12, 51_865),
    "medium": (80, 24, 24, 16, 51_865),
    "large-v2": (80, 32, 32, 20, 51_865),
    "large-v3": (128, 32, 32, 20, 51_866),
    "large-v3-turbo": (128, 32, 4, 20, 51_866),
}


def whisper_tokenizer(vocabulary: int) -> Backend:
    """Byte-level BPE with Whisper's special tokens where Whisper has them: behind 50,257 words, times last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e")]
    words = {token: i for i, token in enumerate([*alphabet, "th", "the"])}
    words |= {f"word{i}": i for i in range(len(words), 50_257)}
    backend = Backend(models.BPE(vocab=words, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    languages = [f"<|{code}|>" for code in CODES]
    languages += [f"<|x{n}|>" for n in range(vocabulary - 50_257 - len(SPECIAL) - len(CODES) - len(TASKS) - 1501)]
    times = [f"<|{n * 0.02:.2f}|>" for n in range(1501)]
    backend.add_special_tokens([*SPECIAL, *languages, *TASKS])
    backend.add_tokens(times)
    assert backend.get_vocab_size() == vocabulary
    return backend


def write_whisper(folder: Path, layout: tuple[int, int, int, int, int]) -> Path:
    """A random Whisper of a published layout, one head's width to a head."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    mels, ears, layers, heads, vocabulary = layout
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=mels, d_model=2 * heads, encoder_layers=ears, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * heads,
        decoder_ffn_dim=4 * heads, init_std=0.2,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizers() -> dict[int, str]:
    return {size: whisper_tokenizer(size).to_str() for size in (51_865, 51_866)}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two noises."""
    folder = tmp_path_factory.mktemp("speech")
    lines = []
    for number, text in enumerate(["the cat", "das haus"]):
        soundfile.write(folder / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 16_000), 16_000)
        row = {"audio_filepath": f"{number}.wav", "duration": 1.0, "text": text, "lang": ("en", "de")[number]}
        lines.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def write_recipe(folder: Path, speech: Path, **settings: Any) -> Path:
    rates = "{ projector = 1e-2, conditioning = 1e-2, lora = 1e-2 }"
    base: dict[str, Any] = {"name": "any", "init": "../nowhere", "manifests": [str(speech)], "dev": str(speech),
                            "evaluate_count": 1, "autocast": False}  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in (base | settings).items()]
    stage = ["[[stage]]", 'name = "all"', "steps = 1", "seconds = 4", f"rates = {rates}", "warmup = 0", "ema = 0.0",
             "ctc = 1.0", "ar = 1.0", "ctc_extra = 64", "lora_rank = 2"]  # fmt: skip
    (folder / "recipe.toml").write_text("\n".join([*lines, *stage]))
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ("medium", "large-v2") else []) for n in LAYOUTS]
)
def test_each_layout_loads_and_takes_a_training_step(
    name: str, tokenizers: dict[int, str], speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = LAYOUTS[name]
    folder = write_whisper(tmp_path / f"whisper-{name}", layout)
    (folder / "tokenizer.json").write_text(tokenizers[layout[-1]])
    monkeypatch.setattr(loop, "_board", lambda out: None)
    monkeypatch.setattr(loop, "_look", lambda *_: {})
    recipe = write_recipe(tmp_path, speech, recompute=True)
    assert main(["train", str(recipe), "--init", str(folder), "--out", str(tmp_path / "out")]) == 0
    model = checkpoint.load(tmp_path / "out" / "model")
    sizes: Any = model.config.decoder
    ears = model.config.encoder
    assert (ears.mels, ears.layers, sizes.layers, sizes.heads) == layout[:4]
    assert model.tokenizer.size == layout[-1], "the tokenizer is whole"
    log = json.loads((tmp_path / "out" / "log.jsonl").read_text())
    assert {"ctc", "ar", "diffusion"} <= log.keys() and log["rows"] == 2
    if name != "tiny":
        return
    before = from_any_whisper(str(folder)).network.state_dict()
    changed = {n for n, v in model.network.state_dict().items() if not torch.equal(v, before[n])}
    assert {n for n in changed if n.startswith("decoder.layers.")}, "LoRA was merged"
    assert not {n for n in changed if n.startswith("encoder.")}


@pytest.mark.parametrize("name", ["tiny", "large-v3-turbo"])
@torch.no_grad()
def test_it_starts_as_the_whisper_that_it_was(name: str, tokenizers: dict[int, str], tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    layout = (LAYOUTS[name][0], 2, *LAYOUTS[name][2:])  # two layers of ears are as good as thirty-two
    folder = write_whisper(tmp_path, layout)
    (folder / "tokenizer.json").write_text(tokenizers[layout[-1]])
    ours = from_any_whisper(str(folder))
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    mel = torch.randn(1, layout[0], 3000, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([ours.tokenizer.encode("the hat")])
    cache = ours.network.prefill(ours.network.hear(mel, torch.tensor([3000])), torch.tensor([0]))
    read = torch.cat((torch.tensor([ours.tokenizer.prefix("en")]), text), dim=1)
    wanted = theirs(input_features=mel, decoder_input_ids=read).logits[:, 3:]
    torch.testing.assert_close(ours.network.ar_logits(text, cache), wanted, rtol=1e-3, atol=1e-3)


def test_a_tokenizer_without_times_takes_the_rows_that_it_has(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path, (80, 1, 1, 2, 51_865))
    backend = whisper_tokenizer(51_865)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] < 51_865 - 1501]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert from_any_whisper(str(folder)).tokenizer.size == 51_865 - 1501


def test_what_can_not_be_turned_is_refused(tokenizers: dict[int, str], tmp_path: Path) -> None:
    english = write_whisper(tmp_path / "whisper-tiny.en", (80, 1, 1, 2, 51_864))
    (english / "tokenizer.json").write_text(tokenizers[51_865])
    with pytest.raises(ModelError, match=r"English alone .*without \.en"):
        from_any_whisper(str(english))
    small = write_whisper(tmp_path / "small", (80, 1, 1, 2, 51_865))
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        from_any_whisper(str(small))
    (small / "tokenizer.json").write_text(tokenizers[51_866])
    with pytest.raises(ModelError, match="51865 embeddings and 51866 tokens"):
        from_any_whisper(str(small))
    (small / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(ModelError, match="'wav2vec2' model"):
        kind_of(str(small))
    (small / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        kind_of(str(small))


def test_start_is_the_same_each_time_and_by_seed(tokenizers: dict[int, str], tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "w", (80, 1, 1, 2, 51_865))
    (folder / "tokenizer.json").write_text(tokenizers[51_865])
    a, b, c = (
        start(folder, device=CPU, precision="float32", seed=seed).network.state_dict()["projector.linear.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    half = start(folder, device=CPU, precision="bfloat16", seed=0).network
    assert next(half.parameters()).dtype == torch.bfloat16


def test_ours_is_loaded_as_it_is(tmp_path: Path) -> None:
    model = random_model()
    checkpoint.save(tmp_path / "ours", model)
    assert kind_of(str(tmp_path / "ours")) == "diffasr"
    read = start(tmp_path / "ours", device=CPU, precision="float32", seed=0).network.state_dict()
    assert all(torch.equal(v, read[n]) for n, v in model.network.state_dict().items())
