"""Whisper's own decoder as a denoiser.

With its causal mask off the decoder reads a whole canvas at once; with the mask on it is Whisper, for the
autoregressive loss and the comparison. It hears through cross-attention, whose keys and values are computed once.

An autoregressive decoder says at each place what comes next. So does the denoiser: what it says of a canvas place is
read one place earlier, and training starts from what Whisper knows instead of against it (the shift of
arXiv:2410.17891 figure 1).

Small things are added, each without effect before training: the projector (audio tokens, 25 a second, for CTC
through the tied embedding), and a conditioning block. It tells each place, where it is read, its own noisy token, what
the previous step believed of it, and which audio token CTC heard for it, and when: without such hints a place of a
noisy canvas does not know its own moment.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.model.config import HANDICAP, HEARD, PACE, SURE
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.layers import Block, KeysValues, Past, key_mask, table
from diffasr.model.memory import Memory, chosen, silent
from diffasr.model.network import Cache, Speech
from diffasr.model.projector import Projector


class Conditioning(nn.Module):
    """What is known of a canvas place: its noisy token, the previous step's belief, the audio that CTC gave it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width, bias=False)
        self.belief_norm = nn.LayerNorm(width)
        self.belief = nn.Linear(width, width, bias=False)
        self.hint_norm = nn.LayerNorm(width)
        self.hint = nn.Linear(2 * width, width, bias=False)
        nn.init.zeros_(self.own.weight)
        nn.init.zeros_(self.belief.weight)
        nn.init.zeros_(self.hint.weight)

    def from_logits(self, logits: Tensor, embedding: Tensor) -> Tensor:
        """(B, L, V) logits to (B, L, D): the mean embedding under their distribution, normed and mapped."""
        return self.belief(self.belief_norm(logits.softmax(-1).to(embedding.dtype) @ embedding))

    def from_hints(self, audio: Tensor, hints: Tensor, frames: int) -> Tensor:
        """Audio tokens (B, N, D), each of so many encoder frames, and slots (B, L), -1 for none, to (B, L, D)."""
        width = audio.shape[2]
        heard = self.hint_norm(audio).gather(1, hints.clamp_min(0)[..., None].expand(-1, -1, width))  # (B, L, D)
        when = sinusoids(frames * hints + (frames - 1) / 2, width).to(heard.dtype)
        return self.hint(torch.cat((heard, when), dim=2)) * (hints >= 0)[..., None]


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Whisper's position code of (B, L) encoder frames, or places between them: (B, L, width)."""
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2, device=places.device))
    angles = places[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class WhisperDecoder(nn.Module):
    """Whisper's text decoder with the causal mask as an option, and the added conditioning."""

    def __init__(
        self, *, vocabulary: int, width: int, heads: int, layers: int, hidden: int, positions: int = 448
    ) -> None:
        super().__init__()
        self.embed_tokens = table(vocabulary, width)
        self.embed_positions = table(positions, width)
        self.layers = nn.ModuleList(Block(width, heads, hidden, hears=True) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.conditioning = Conditioning(width)
        self.future = nn.Parameter(torch.zeros(layers, heads))
        self.heads = heads

    def listen(self, frames: Tensor) -> list[KeysValues]:
        """Keys and values of (B, T, S) frames, a pair a layer: all that the decoder ever needs of them."""
        blocks = cast("list[Block]", list(self.layers))
        return [block.encoder_attn.keys_values(frames) for block in blocks]

    def forward(self, x: Tensor, memory: Memory, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) to hidden states (B, L, D), normed and ready for ``unembed``.

        lengths: (B,) real places of each row, all of which every place may see; None: the causal mask is on.
        """
        speech, speech_mask = memory
        x = x + self.embed_positions.weight[: x.shape[1]]
        views = [None] * len(speech) if lengths is None else self.views(lengths, x)
        for block, keys_values, mask in zip(self.layers, speech, views, strict=True):
            x = block(x, mask, (keys_values, speech_mask), causal=lengths is None)
        return self.layer_norm(x)

    def go_on(self, x: Tensor, memory: Memory, past: list[Past]) -> Tensor:
        """Causal, as ``forward`` without lengths, but (B, U, D) are read behind ``past``, which grows: (B, U, D)."""
        speech, speech_mask = memory
        before, size = past[0].length, x.shape[1]
        x = x + self.embed_positions.weight[before : before + size]
        mask = torch.ones(size, before + size, dtype=torch.bool, device=x.device).tril(before)
        for block, keys_values, own in zip(self.layers, speech, past, strict=True):
            x = block(x, mask, (keys_values, speech_mask), past=own)
        return self.layer_norm(x)

    def view(self, layer: int, lengths: Tensor, x: Tensor) -> Tensor:
        """What is added to the attention scores of one layer over ``x`` (B, L, D): (B, H, L, L)."""
        return self.views(lengths, x)[layer]

    def views(self, lengths: Tensor, x: Tensor) -> list[Tensor]:
        """What is added to the attention scores of each layer over ``x`` (B, L, D): (B, H, L, L).

        Later places start at a handicap, which each head learns to drop or to keep: the causal mask is not torn off
        but let go.
        """
        size = x.shape[1]
        later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
        handicap = (HANDICAP - PACE * self.future)[..., None, None, None].transpose(1, 2)  # (layers, 1, H, 1, 1)
        scores = -handicap * later  # (layers, 1, H, L, L)
        return list(scores.masked_fill(~key_mask(lengths, size), float("-inf")).to(x.dtype).unbind())

    def believed(self, logits: Tensor) -> Tensor:
        """What the conditioning block makes of the step before's (B, L, V) logits: (B, L, D)."""
        return self.conditioning.from_logits(logits, self.embed_tokens.weight)

    def unembed(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, V) through the tied embedding; to (B, L, C) when only ``labels`` (C,) are wanted."""
        rows = self.embed_tokens.weight
        return F.linear(hidden, rows if labels is None else rows[labels])


class WhisperNetwork(nn.Module):
    """A Whisper of any size behind the Network interface."""

    prefixes: Tensor
    alphabet: Tensor

    def __init__(
        self, encoder: WhisperEncoder, projector: Projector, decoder: WhisperDecoder, prefixes: Tensor, alphabet: Tensor
    ) -> None:
        """prefixes: (6, P) clean tokens before a canvas, a row a language. alphabet: (C,) tokens that CTC labels."""
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.decoder = decoder
        self.register_buffer("prefixes", prefixes, persistent=False)
        self.register_buffer("alphabet", alphabet, persistent=False)
        self.habits = nn.Parameter(torch.zeros(len(prefixes), len(alphabet)), requires_grad=False)

    def hear(self, mel: Tensor, lengths: Tensor) -> Speech:
        """See Network."""
        return Speech(frames=self.encoder(mel, lengths), lengths=self.encoder.frames(lengths))

    def ctc_logits(self, speech: Speech, labels: Tensor | None = None) -> Tensor:
        """See Network."""
        return self._label(self.projector(speech.frames, speech.lengths), labels)

    def _label(self, audio: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder.unembed(audio, self.alphabet if labels is None else self.alphabet[labels])

    def prefill(self, speech: Speech, languages: Tensor | None) -> Cache:
        """See Network."""
        audio = self.projector(speech.frames, speech.lengths)
        size = speech.frames.shape[1]
        mask = None if bool((speech.lengths == size).all()) else key_mask(speech.lengths, size)
        memory = (self.decoder.listen(speech.frames), mask)
        slots, labels = self.slots(speech), self._label(audio)  # (B,), (B, N, C)
        logits, known = self._languages(memory, labels, slots, languages)
        return Cache(
            audio=audio,
            slots=slots,
            ctc=labels,
            languages=known,
            language_logits=logits,
            memory=memory,
        )

    def _languages(self, memory: Memory, labels: Tensor, slots: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, 6) and languages (B,). Where it was ``told`` all of them it does not listen for them."""
        told = torch.full_like(slots, -1) if told is None else told
        sure = SURE * (F.one_hot(told.clamp_min(0), len(self.prefixes)).to(labels.dtype) - 1)
        if bool((told >= 0).all()):
            return sure, told
        logits = self._language_logits(memory) + self._language_evidence(labels, slots)
        return torch.where(told[:, None] < 0, logits, sure), torch.where(told < 0, logits.argmax(1), told)

    def slots(self, speech: Speech) -> Tensor:
        """See Network."""
        return self.projector.slots(speech.lengths)

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """See Network."""
        return Cache(
            audio=cache.audio[rows],
            slots=cache.slots[rows],
            ctc=cache.ctc[rows],
            languages=cache.languages[rows],
            language_logits=cache.language_logits[rows],
            memory=chosen(cache.memory, rows, len(cache.slots)),
            context=cache.context,
        )

    def without_audio(self, cache: Cache, rows: Tensor) -> Cache:
        """See Network."""
        return replace(cache, memory=silent(cache.memory, rows))

    def remember(self, cache: Cache, tokens: Sequence[int]) -> Cache:
        """See Network. Whisper leaves half of its places to it, less one."""
        room = self.decoder.embed_positions.num_embeddings // 2 - 1
        return replace(cache, context=torch.tensor(list(tokens)[-room:], dtype=torch.long, device=cache.audio.device))

    @torch.no_grad()
    def _language_logits(self, memory: Memory) -> Tensor:
        """Whisper writes the language first: its causal logits after the start token, of our languages."""
        rows = memory[0][0][0].shape[0]
        start = self.prefixes[:1, :1].expand(rows, 1)  # (B, 1)
        hidden = self.decoder(self.decoder.embed_tokens(start), memory)
        return F.linear(hidden[:, 0], self.decoder.embed_tokens(self.prefixes[:, 1]))  # (B, 6)

    @torch.no_grad()
    def _language_evidence(self, labels: Tensor, slots: Tensor) -> Tensor:
        """In which language what CTC heard is usual: the mean of ``habits`` under its (B, N, C) logits, summed: (B, 6).

        ``habits``: (6, C) log-probability of each label in the text of a language, the blank's 0.
        """
        real = torch.arange(labels.shape[1], device=labels.device) < slots[:, None]  # (B, N)
        pairs = zip(labels.split(1), real[..., None].split(1), strict=True)  # one by one: a copy of all is large
        shares = torch.cat([row.softmax(-1).mul_(mine).sum(1) for row, mine in pairs])  # (B, C) how often it was heard
        return HEARD * shares @ self.habits.T.to(shares.dtype)

    def denoise(
        self,
        canvas: Tensor,
        cache: Cache,
        *,
        lengths: Tensor,
        previous: Tensor | None = None,
        hints: Tensor | None = None,
    ) -> Tensor:
        """See Network."""
        decoder, conditioning = self.decoder, self.decoder.conditioning
        prefix = self.prefixes[cache.languages]  # (B, P)
        if cache.context is not None:
            prefix = torch.cat((cache.context.expand(len(prefix), -1), prefix), dim=1)  # (B, U + P)
        tokens = decoder.embed_tokens(canvas)  # (B, L, D)
        known = conditioning.own(tokens)
        if previous is not None:
            known = known + decoder.believed(previous)
        if hints is not None:
            known = known + conditioning.from_hints(cache.audio.detach(), hints, self.projector.frames)
        before = prefix.shape[1] - 1
        x = torch.cat((decoder.embed_tokens(prefix), tokens[:, :-1]), dim=1)  # (B, P - 1 + L, D)
        x = x + F.pad(known, (0, 0, before, 0))
        hidden = decoder(x, cache.memory, before + lengths)[:, before:]
        return decoder.unembed(hidden)  # (B, L, V)

    def ar_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """See Network."""
        prefix = self.prefixes[cache.languages]
        x = self.decoder.embed_tokens(torch.cat((prefix, tokens), dim=1))  # (B, P + U, D)
        hidden = self.decoder(x, cache.memory)[:, prefix.shape[1] - 1 :]
        return self.decoder.unembed(hidden)  # (B, U + 1, V)

    def ar_reader(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """See Network."""
        decoder, prefix = self.decoder, self.prefixes[cache.languages]
        past = [Past() for _ in decoder.layers]

        def read(tokens: Tensor) -> Tensor:
            new = tokens if past[0].length else torch.cat((prefix, tokens), dim=1)
            hidden = decoder.go_on(decoder.embed_tokens(new), cache.memory, past)
            return decoder.unembed(hidden[:, -1])  # (B, V)

        return read
