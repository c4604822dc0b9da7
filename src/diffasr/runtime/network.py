"""A whisper backbone on a CPU, without torch: ONNX Runtime multiplies, numpy keeps what is between.

Every clip and every text goes alone, so that neighbours change nothing, to the last bit. It is for decoders none of
whose places sees a later one: see ``reader``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from diffasr.decodable import Floats
from diffasr.diffusion.ctc import log_softmax
from diffasr.model.config import BLIND, HANDICAP, HEARD, PACE, SURE, DecoderConfig, ModelConfig
from diffasr.places import Place, unread
from diffasr.runtime import graphs
from diffasr.runtime.graph import FULL, Graph
from diffasr.runtime.reader import Decoder, Reader, Row, silent
from diffasr.runtime.weights import Weights
from diffasr.text import LANGUAGES, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HANDS = 2
"""Texts that are written at a time: while Python works on one, another is read."""


@dataclass(frozen=True)
class Speech:
    """What the encoder heard."""

    frames: Sequence[Floats]
    """(T, S) of each clip."""

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One prefill: read by every step, changed by none."""

    ctc: Sequence[Floats]
    """(N, C) CTC logits of each row."""
    speech: Sequence[dict[str, Floats]]
    """Of each row the decoder's keys and values of the sound, by their names in its graph."""
    languages: NDArray[np.int64]
    """(B,) index into ``text.LANGUAGES`` of the language that each row is written in."""
    language_logits: Floats
    """(B, 6) what the model thinks; of a row whose language it was told it names that one alone."""
    context: tuple[int, ...] = ()
    """The end of the text that was said before."""

    @property
    def device(self) -> "torch.device":
        """See ``decodable.Heard``."""
        import torch

        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.ctc)

    def labels(self, row: int) -> Floats:
        """See ``decodable.Heard``."""
        return self.ctc[row]


def is_int8(weights: Weights) -> bool:
    """Whether the large matrices are stored in int8."""
    return weights.place("decoder.embed_tokens.weight").kind == "I8"


def why_not(weights: Weights, config: ModelConfig) -> str:
    """What stands against running a checkpoint here; nothing: an empty text."""
    if weights.strange:
        return f"its file has numbers of kind {weights.strange}"
    if "decoder.future" not in weights:
        return "its file lacks decoder.future"
    sees = (HANDICAP - PACE * weights.floats("decoder.future") < BLIND - 0.1).any()
    told = any(weights.read(f"decoder.conditioning.{part}.weight").any() for part in ("own", "belief", "hint"))
    if sees or told:
        return "places of its canvas see later ones"
    if not all(_is_alike(weights, name.removesuffix("q_proj.weight")) for name in weights.names("q_proj.weight")):
        return "some of its matrices that are multiplied together are in int8, others are not"
    return "" if config.encoder.mode != "whole" else "its encoder hears 30 s at once"


def _is_alike(weights: Weights, name: str) -> bool:
    """Whether queries, keys and values are stored as numbers of one kind."""
    parts = [f"{name}{part}_proj.weight" for part in "qkv"]
    return len({weights.place(part).kind for part in parts if part in weights}) == 1


class RuntimeNetwork:
    """The same as ``model.whisper.WhisperNetwork`` for listening and reading; it can't be trained."""

    def __init__(
        self, weights: Weights, config: ModelConfig, tokenizer: Tokenizer, *, threads: int, reach: int = FULL
    ) -> None:
        """threads: that listen; what reads a few tokens is too small to be shared. reach: see ``Graph``."""
        assert isinstance(config.decoder, DecoderConfig)

        def session(write: Callable[..., None], threads: int = 1) -> onnxruntime.InferenceSession:
            graph = Graph(weights, reach=reach)
            write(graph, config)
            return graph.session(threads=threads)

        self.encoder, self.listener = session(graphs.encoder, threads), session(graphs.listener, threads)
        self.labeller = session(partial(graphs.labeller, alphabet=tokenizer.alphabet), threads)
        self.decoder = Decoder(
            session(graphs.decoder),
            session(graphs.head),
            partial(session, graphs.vocabulary),
            weights,
        )
        self.hands = min(HANDS, threads)
        self.end = tokenizer.end
        self.prefixes = [tokenizer.prefix(code) for code in LANGUAGES]
        self.habits = weights.floats("habits")  # (6, C)

    def inference_mode(self) -> AbstractContextManager[None]:
        """See ``decodable.Decodable``."""
        return nullcontext()

    def listen(self, features: Sequence[Floats], real: Sequence[int] | None = None) -> Speech:
        """See ``decodable.Decodable``."""
        frames = [self.encoder.run(["frames"], {"mel": mel})[0] for mel in features]
        return Speech(frames if real is None else [f[:size] for f, size in zip(frames, real, strict=True)])

    def heard(self, frames: Sequence[Floats]) -> Speech:
        """See ``decodable.Decodable``."""
        return Speech([np.asarray(row, np.float32) for row in frames])

    def parts(self, speech: Speech) -> list[Speech]:
        """See ``decodable.Decodable``."""
        return [Speech([frames]) for frames in speech.frames]

    def ctc_rows(self, speech: Speech) -> list[Floats]:
        """See ``decodable.Decodable``."""
        return [self.labeller.run(["labels"], {"frames": frames})[0] for frames in speech.frames]

    def prefill(self, speech: Speech, languages: Sequence[int] | None) -> Cache:
        """See ``decodable.Decodable``."""
        labels, names = self.ctc_rows(speech), [output.name for output in self.listener.get_outputs()]
        heard = [dict(zip(names, self.listener.run(names, {"frames": f}), strict=True)) for f in speech.frames]
        told = [-1] * len(heard) if languages is None else [int(language) for language in languages]
        logits = np.stack([self._language(*row) for row in zip(labels, heard, told, strict=True)])
        known = np.where(np.asarray(told) < 0, logits.argmax(1), told)
        return Cache(ctc=labels, speech=heard, languages=known, language_logits=logits)

    def _language(self, labels: Floats, speech: dict[str, Floats], told: int) -> Floats:
        """(6,) logits: Whisper's own, who writes the language first, and in which language what CTC heard is usual."""
        if told >= 0:
            return (SURE * (np.arange(len(self.prefixes)) == told) - SURE).astype(np.float32)
        row = Row(speech)
        self.decoder.read(row, self.prefixes[0][:1])
        written = self.decoder.embedded([prefix[1] for prefix in self.prefixes]) @ row.hidden[-1]
        shares = np.exp(log_softmax(labels)).sum(0)  # (C,) how often each was heard
        usual = np.einsum("lc,c->l", self.habits, shares)
        found: Floats = (written + HEARD * usual).astype(np.float32)
        return found

    def select(self, cache: Cache, rows: Sequence[int]) -> Cache:
        """See ``decodable.Decodable``."""
        chosen = list(rows)
        return replace(
            cache,
            ctc=[cache.ctc[row] for row in chosen],
            speech=[cache.speech[row] for row in chosen],
            languages=cache.languages[chosen],
            language_logits=cache.language_logits[chosen],
        )

    def remember(self, cache: Cache, tokens: Sequence[int]) -> Cache:
        """See ``decodable.Decodable``. Whisper leaves half of its places to it, less one."""
        room = self.decoder.size // 2 - 1
        return replace(cache, context=tuple(tokens)[-room:])

    def reader(
        self,
        cache: Cache,
        lengths: Sequence[int],
        guidance: Sequence[float],
        *,
        end: int,
        shows_beliefs: bool = False,
    ) -> Reader:
        """See ``decodable.Decodable``. Texts may be of any length here; what would be shown beliefs is silent."""
        prefixes = [self._prefix(cache, row) for row in range(len(cache))]
        return Reader(self.decoder, prefixes, cache.speech, guidance)

    def without_audio(self, cache: Cache, rows: "Tensor") -> Cache:
        """See ``decodable.Decodable``."""
        pairs = zip(cache.speech, rows.tolist(), strict=True)
        return replace(cache, speech=[silent(speech) if is_deaf else speech for speech, is_deaf in pairs])

    def denoise(
        self,
        canvas: "Tensor",
        cache: Cache,
        *,
        lengths: "Tensor",
        previous: "Tensor | None" = None,
        hints: "Tensor | None" = None,
    ) -> "Tensor":
        """See ``decodable.Decodable``: for samplers, which are torch's."""
        import torch

        out = torch.zeros(*canvas.shape, self.decoder.vocabulary)
        for row, (tokens, size) in enumerate(zip(canvas.tolist(), lengths.tolist(), strict=True)):
            prefix = self._prefix(cache, row)
            read = Row(cache.speech[row])
            self.decoder.read(read, [*prefix, *tokens[: size - 1]])
            out[row, :size] = torch.from_numpy(self.decoder.scores(read.hidden[len(prefix) - 1 :]))
        return out

    def _prefix(self, cache: Cache, row: int) -> list[int]:
        return [*cache.context, *self.prefixes[int(cache.languages[row])]]

    def ar_reader(self, cache: Cache) -> Callable[[Sequence[Sequence[int]]], list[Place]]:
        """See ``decodable.Decodable``."""
        reader = self.reader(cache, (), [0.0] * len(cache), end=self.end)

        def said(texts: Sequence[Sequence[int]]) -> list[Place]:
            nothing = unread(self.end)
            return [nothing if text[-1:] == [self.end] else reader.next(row, text) for row, text in enumerate(texts)]

        return said
