"""Manifests as they are: sound read, changed and turned to log-mel features each time, nothing on disk.

Slower than a feature store, but the encoder may learn too, and no utterance ever sounds twice the same.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffasr.audio import SAMPLE_RATE_HZ, WINDOW_SECONDS, Samples, load_audio, log_mel
from diffasr.text import Tokenizer
from diffasr.train.augment import Augment
from diffasr.train.data import Item, needed_slots, read_manifest
from diffasr.train.tar import sound as sound_of

PAUSES = (0.1, 0.7)
"""Seconds between clips that were joined."""
TRIES = 50
"""How often it is tried to join clips, for each item that is wanted."""


class Recordings:
    """The utterances of one manifest, as sound."""

    def __init__(
        self, manifest: str | os.PathLike[str], augment: Augment, *, mels: int = 80, whole: bool = False
    ) -> None:
        """whole: the encoder hears 30 s of every utterance, silence behind it."""
        self.utterances = [u for u in read_manifest(manifest) if u.duration <= WINDOW_SECONDS]
        self.spans = [(0, round((WINDOW_SECONDS if whole else u.duration) * 50)) for u in self.utterances]
        self.augment, self.mels, self.whole = augment, mels, whole

    def mel(self, numbers: Sequence[int], dice: np.random.Generator) -> Tensor:
        """Log-mel features (mels, M) of one utterance, or of several in a row. Raises AudioError."""
        parts: list[Samples] = []
        for number in numbers:
            if parts:
                parts.append(np.zeros(int(dice.uniform(*PAUSES) * SAMPLE_RATE_HZ), np.float32))
            parts.append(load_audio(sound_of(self.utterances[number].audio), max_seconds=WINDOW_SECONDS + 5))
        sound = self.augment(np.concatenate(parts), dice)[: int(WINDOW_SECONDS * SAMPLE_RATE_HZ)]
        return torch.from_numpy(log_mel(sound, mels=self.mels, padded=self.whole))


def joined(
    items: Sequence[Item], tokenizer: Tokenizer, *, share: float, seed: int, max_tokens: int, strides: int = 1
) -> list[Item]:
    """``share`` times as many items again, each of several clips of one store and language that fit into 30 s.

    Fewer, or none, where clips are too long to be joined. strides: of the projector, each of which halves the frames.
    """
    dice = random.Random(seed)
    groups: dict[tuple[int, str], list[Item]] = {}
    for item in items:
        groups.setdefault((id(item.store), item.language), []).append(item)
    pools = sorted(groups.values(), key=lambda pool: (pool[0].language, len(pool)))
    made: list[Item] = []
    wanted, tries = round(share * len(items)), 0
    while len(made) < wanted and tries < TRIES * wanted:
        tries += 1
        pool = dice.choices(pools, weights=[len(p) for p in pools])[0]
        longest = dice.uniform(8.0, WINDOW_SECONDS - 1.0)
        chosen: list[Item] = []
        while len(chosen) < 12:
            item = dice.choice(pool)
            if sum(i.seconds for i in chosen) * 1.1 + item.seconds * 1.1 + len(chosen) * PAUSES[1] > longest:
                break
            chosen.append(item)
        if len(chosen) > 1:
            made += _one(chosen, tokenizer, max_tokens, strides)
    return made


def _one(chosen: Sequence[Item], tokenizer: Tokenizer, max_tokens: int, strides: int) -> list[Item]:
    """The clips as one item; nothing where the text is too long for a canvas or for CTC."""
    first = chosen[0]
    space = "" if first.language == "zh" else " "
    text = space.join(item.store.utterances[item.number].text.strip() for item in chosen)
    tokens, pieces = tokenizer.encode(text), tokenizer.pieces(text)
    seconds = sum(item.seconds for item in chosen) + sum(PAUSES) / 2 * (len(chosen) - 1)
    if len(tokens) > max_tokens or needed_slots(pieces) > seconds * 50 / 2**strides:
        return []
    more = tuple(item.number for item in chosen[1:])
    return [replace(first, more=more, tokens=tuple(tokens), pieces=tuple(pieces), seconds=seconds)]
