"""A network of torch's as decoding wants it: lists and arrays in and out, tensors in between."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffasr.decodable import Floats
from diffasr.model.encoder import stack
from diffasr.model.network import Cache, Speech
from diffasr.places import Place
from diffasr.whole import Whole, places_of


@dataclass(frozen=True)
class Prefilled:
    """See ``decodable.Heard``."""

    cache: Cache

    @property
    def languages(self) -> NDArray[np.int64]:
        """(B,)."""
        return self.cache.languages.cpu().numpy()

    @property
    def language_logits(self) -> Floats:
        """(B, 6)."""
        return self.cache.language_logits.float().cpu().numpy()

    @property
    def device(self) -> torch.device:
        """See Heard."""
        return self.cache.audio.device

    def __len__(self) -> int:
        return len(self.cache.slots)

    def labels(self, row: int) -> Floats:
        """(N, C)."""
        return self.cache.ctc[row, : int(self.cache.slots[row])].float().cpu().numpy()


class Torched:
    """See ``decodable.Decodable``."""

    hands = 1

    def __init__(self, module: Any) -> None:
        """module: a torch module behind ``model.network.Network``."""
        self._module = module

    def inference_mode(self) -> AbstractContextManager[Any]:
        """See Decodable."""
        return torch.inference_mode()

    def listen(self, features: Sequence[Floats], real: Sequence[int] | None = None) -> Speech:
        """See Decodable."""
        batch, lengths = stack([torch.from_numpy(mel) for mel in features])
        like = self._module.encoder.conv1.weight
        with torch.inference_mode():
            speech: Speech = self._module.hear(batch.to(like.device, like.dtype), lengths.to(like.device))
        if real is None:
            return speech
        kept = torch.tensor(real, device=like.device)
        return Speech(frames=speech.frames[:, : int(kept.max())], lengths=kept)

    def heard(self, frames: Sequence[Floats]) -> Speech:
        """See Decodable."""
        like = self._module.encoder.conv1.weight
        rows = [torch.from_numpy(row).to(like.device, like.dtype) for row in frames]
        lengths = torch.tensor([len(row) for row in frames], device=like.device)
        return Speech(frames=nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths=lengths)

    def parts(self, speech: Speech) -> list[Speech]:
        """All together."""
        return [speech]

    def ctc_rows(self, speech: Speech) -> list[Floats]:
        """See Decodable."""
        sizes, logits = self._module.slots(speech).tolist(), self._module.ctc_logits(speech).float().cpu()
        return [row[:size].numpy() for row, size in zip(logits, sizes, strict=True)]

    def prefill(self, speech: Speech, languages: Sequence[int] | None) -> Prefilled:
        """See Decodable."""
        known = None if languages is None else torch.as_tensor(languages, device=speech.frames.device)
        return Prefilled(self._module.prefill(speech, known))

    def select(self, cache: Prefilled, rows: Sequence[int]) -> Prefilled:
        """See Decodable."""
        chosen = torch.as_tensor(rows, dtype=torch.long, device=cache.device)
        return Prefilled(self._module.select(cache.cache, chosen))

    def without_audio(self, cache: Prefilled, rows: Tensor) -> Prefilled:
        """See Decodable."""
        return Prefilled(self._module.without_audio(cache.cache, rows))

    def remember(self, cache: Prefilled, tokens: Sequence[int]) -> Prefilled:
        """See Decodable."""
        return Prefilled(self._module.remember(cache.cache, tokens))

    def denoise(self, canvas: Tensor, cache: Prefilled, **known: Any) -> Tensor:
        """See Decodable."""
        logits: Tensor = self._module.denoise(canvas, cache.cache, **known)
        return logits

    def reader(
        self,
        cache: Prefilled,
        lengths: Sequence[int],
        guidance: Sequence[float],
        *,
        end: int,
        shows_beliefs: bool = False,
    ) -> Whole:
        """See Decodable."""
        return Whole(self, cache, lengths, guidance, end=end, shows_beliefs=shows_beliefs)

    def ar_reader(self, cache: Prefilled) -> Callable[[Sequence[Sequence[int]]], list[Place]]:
        """See Decodable."""
        read = self._module.ar_reader(cache.cache)

        def said(texts: Sequence[Sequence[int]]) -> list[Place]:
            new = torch.tensor([text[-1:] for text in texts], dtype=torch.long, device=cache.device)
            return places_of(read(new.reshape(len(texts), min(1, len(texts[0])))))

        return said
