"""Text and spoken digits in; a tokenizer, digit strings and their frozen Whisper frames out."""

import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffasr.audio import SAMPLE_RATE_HZ, load_audio, log_mel
from diffasr.evaluate.normalise import normalise
from diffasr.model.encoder import WhisperEncoder
from diffasr.text import LANGUAGES, PREFIX_TOKENS

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "recipe.toml").read_text())
DATA, TRAIN = RECIPE["data"], RECIPE["train"]
WORK = (ROOT / DATA["work"]).resolve()
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CODES = list(LANGUAGES)


def text_lines(language: str) -> list[str]:
    """Lower-case lines without punctuation, in a fixed random order."""
    lines = (ROOT / DATA["text"] / f"{language}.txt").read_text().splitlines()
    random.Random(TRAIN["seed"]).shuffle(lines)
    return [normalise(line, language) for line in lines[: DATA["text_lines"][language]]]


def digit_words(dice: random.Random) -> list[str]:
    """A few random digits, in words."""
    return dice.choices(DIGITS, k=dice.randint(*DATA["digits"]))


def make_tokenizer() -> None:
    """A byte-level BPE on the text, with the special tokens that diffasr needs."""
    dice = random.Random(0)
    lines = [line for code in DATA["text_lines"] for line in text_lines(code)]
    lines += [" ".join(digit_words(dice)) for _ in range(len(lines) // 20)]
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [*PREFIX_TOKENS, *(f"<|{code}|>" for code in CODES)]
    options: dict[str, Any] = {"vocab_size": DATA["vocabulary"], "special_tokens": special, "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    backend.train_from_iterator(lines, trainer)
    backend.save(str(WORK / "tokenizer.json"))


def whisper_encoder() -> WhisperEncoder:
    """Whisper's encoder with its published weights."""
    folder = ROOT / DATA["whisper"]
    sizes = json.loads((folder / "config.json").read_text())
    encoder = WhisperEncoder(mels=sizes["num_mel_bins"], width=sizes["d_model"], layers=sizes["encoder_layers"],
                             heads=sizes["encoder_attention_heads"], hidden=sizes["encoder_ffn_dim"])  # fmt: skip
    start = "model.encoder."
    stored = load_file(folder / "model.safetensors")
    encoder.load_state_dict({k[len(start) :]: v.float() for k, v in stored.items() if k.startswith(start)})
    return encoder.eval().requires_grad_(False)


def spoken_strings(
    clips: list[dict[str, Any]], count: int, dice: random.Random
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Clips of one speaker joined with short silences: words and samples."""
    speakers = sorted({clip["speaker"] for clip in clips})
    audio = {clip["audio_filepath"]: load_audio(ROOT / DATA["speech"] / clip["audio_filepath"]) for clip in clips}
    for _ in range(count):
        speaker = dice.choice(speakers)
        chosen = dice.choices([c for c in clips if c["speaker"] == speaker], k=dice.randint(*DATA["digits"]))
        pieces = []
        for clip in chosen:
            gap = np.zeros(int(dice.uniform(*DATA["gap_seconds"]) * SAMPLE_RATE_HZ), dtype=np.float32)
            pieces += [gap, audio[clip["audio_filepath"]]]
        yield " ".join(clip["text"].lower() for clip in chosen), np.concatenate(pieces)


@torch.no_grad()
def make_features() -> None:
    """Write frames and words of the train and dev strings; a clip serves only one of them."""
    rows = [json.loads(line) for line in (ROOT / DATA["speech"] / "train.jsonl").open(encoding="utf-8")]
    clips = [row for row in rows if row["source"] == "fsdd_en"]
    random.Random(TRAIN["seed"]).shuffle(clips)
    held_out = len(clips) // 8
    encoder = whisper_encoder()
    for name, pool in (("dev", clips[:held_out]), ("train", clips[held_out:])):
        words, frames, dice = [], {}, random.Random(TRAIN["seed"])
        for text, samples in spoken_strings(pool, DATA[f"{name}_strings"], dice):
            mel = torch.from_numpy(log_mel(samples))[None]
            frames[f"{len(words):05d}"] = encoder(mel, torch.tensor([mel.shape[2]]))[0].half().contiguous()
            words.append(text)
        save_file(frames, WORK / f"{name}.safetensors")
        (WORK / f"{name}.json").write_text(json.dumps(words))
