"""DiffusionGemma as a network that hears: prompt and audio tokens in, logits of a whole canvas out.

Its encoder stack reads the prompt causally and fills a key/value cache; its decoder stack reads that cache and the
canvas, each place seeing all. The two stacks share their weights, not their LoRA. Audio tokens take the place of
embedded prompt tokens. Their embedding is scaled by the square root of the width; audio tokens are not, so the
projector learns that scale itself.
Source: ``transformers.models.diffusion_gemma`` 5.24.0; the sizes of the 26 B system are in docs/design.md section 2.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DynamicCache

from diffasr.errors import ModelError, OptionError
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.hub import LANGUAGE_MODEL_FILES, find
from diffasr.model.network import Cache, Speech
from diffasr.model.projector import Projector
from diffasr.model.replay import Replays
from diffasr.model.stacks import Look, Stacks, branch

Experts = Literal["eager", "batched_mm", "grouped_mm"]
"""How the experts are computed: a loop, one padded product, or one grouped product. Same numbers."""

GEMMA = "google/diffusiongemma-26B-A4B-it"
"""Hub id of the 26 B model."""

CANVAS = 256
"""Places of the 26 B model's longest canvas."""

_LAYERS, _PERIOD = 30, 6
_NO_VISION = {
    "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "position_embedding_size": 4,
}  # fmt: skip
"""The library always builds a vision tower: this is the least that it takes, and it is dropped at once."""


def full_text_config() -> dict[str, Any]:
    """The text configuration of the 26 B model, every size given: the class defaults are another model."""
    return {
        "vocab_size": 262_144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 1024,
        "layer_types": ["sliding_attention" if (i + 1) % _PERIOD else "full_attention" for i in range(_LAYERS)],
        "max_position_embeddings": 262_144,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    }


def build_backbone(
    text: Mapping[str, Any], canvas: int, *, experts: Experts = "grouped_mm"
) -> DiffusionGemmaForBlockDiffusion:
    """A DiffusionGemma with random weights and no vision tower.

    text: fields of ``DiffusionGemmaTextConfig``, such as ``full_text_config()``. canvas: places at most. Raises
    ModelError where the last layer is not full attention, for the library would change it without a word.
    """
    types = text.get("layer_types")
    if not types or types[-1] != "full_attention":
        raise ModelError(f"layer_types must be given and end in full_attention, got {types!r}")
    config = DiffusionGemmaConfig(text_config=dict(text), vision_config=dict(_NO_VISION), canvas_length=canvas)
    config._experts_implementation = experts  # the library's own switch; its from_pretrained sets it the same way
    return _without_vision(DiffusionGemmaForBlockDiffusion(config))


def load_backbone(
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    experts: Experts = "grouped_mm",
) -> DiffusionGemmaForBlockDiffusion:
    """A published DiffusionGemma, from a local folder or by hub id, without its vision tower.

    Raises ModelError for a folder or checkpoint that is not a whole DiffusionGemma, DownloadError where the hub does
    not give it.
    """
    name = os.fspath(source)
    folder = _checked_folder(name, revision, ("config.json", *LANGUAGE_MODEL_FILES))
    try:
        loaded: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder, dtype=dtype, experts_implementation=experts, output_loading_info=True
        )
    except OSError as error:
        raise ModelError(f"{folder} is not a whole checkpoint: {error}") from error
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"the weights of {name} do not fit its config: {error}") from error
    backbone, report = loaded
    missing = sorted(k for k in report["missing_keys"] if "vision" not in k)
    if missing:  # the library would leave these at random and go on
        raise ModelError(f"{name} lacks {len(missing)} weights, such as {missing[0]}: fetch it again")
    return _without_vision(backbone)


def sketch_backbone(source: str | os.PathLike[str], *, revision: str | None = None) -> DiffusionGemmaForBlockDiffusion:
    """The same on the meta device: shapes without weights. Of ``GEMMA`` nothing is fetched."""
    name = os.fspath(source)
    text, canvas = full_text_config(), CANVAS
    if name != GEMMA:
        config = DiffusionGemmaConfig.from_pretrained(_checked_folder(name, revision, ("config.json",)))
        text, canvas = config.get_text_config().to_dict(), config.canvas_length or CANVAS
    with torch.device("meta"):
        return build_backbone(text, canvas)


def _checked_folder(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    folder = find(name, revision=revision, files=files)
    fields, _ = DiffusionGemmaConfig.get_config_dict(folder)
    if fields.get("model_type") != "diffusion_gemma":
        raise ModelError(f"{name} is a {fields.get('model_type')!r} model, not a diffusion_gemma")
    return folder


def add_lora(backbone: DiffusionGemmaForBlockDiffusion, rank: int = 16, alpha: int | None = None) -> None:
    """Freeze ``backbone`` and give q, k, v, o of both stacks each their own LoRA, without effect before training.

    Full-attention layers have no v. Router and experts stay as they are. alpha: twice the rank where none is given.
    """
    stacks = r"model\.(encoder\.language_model|decoder)\.layers\.\d+\.self_attn\.[qkvo]_proj"
    backbone.requires_grad_(False)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=stacks)
    inject_adapter_in_model(lora, backbone)


def _without_vision(backbone: DiffusionGemmaForBlockDiffusion) -> DiffusionGemmaForBlockDiffusion:
    backbone.model.encoder.vision_tower = None
    backbone.model.encoder.embed_vision = None
    return backbone


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The token ids around the audio tokens."""

    before: tuple[int, ...]
    """Start token and instruction."""
    after: tuple[int, ...] = ()
    """What closes the turn, if the model was trained with turns. The language token follows."""
    languages: tuple[int, ...]
    """The token of each of ``text.LANGUAGES``."""
    end: int
    """End of text, pad and CTC blank in one."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the stacks need of a prefilled prompt of P places, the language last."""

    keys_values: DynamicCache
    real: Tensor
    """(B, P) bool. Short rows are padded on the left, so that sliding windows see what they would see alone."""
    hidden: Tensor
    """(B, D) the encoder stack at the language token: it predicts the first word."""


class GemmaNetwork(nn.Module):
    """A DiffusionGemma of any size behind the Network interface."""

    before: Tensor
    after: Tensor
    languages: Tensor

    def __init__(
        self, encoder: WhisperEncoder, projector: Projector, backbone: DiffusionGemmaForBlockDiffusion, prompt: Prompt
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.backbone = backbone
        self.end = prompt.end
        self.replays = Replays()
        self.register_buffer("before", torch.tensor(prompt.before), persistent=False)
        self.register_buffer("after", torch.tensor(prompt.after, dtype=torch.int64), persistent=False)
        self.register_buffer("languages", torch.tensor(prompt.languages), persistent=False)

    def hear(self, mel: Tensor, lengths: Tensor) -> Speech:
        """See Network. Features padded to 30 s give 1500 frames, and with three strides 188 slots."""
        return Speech(frames=self.encoder(mel, lengths), lengths=self.encoder.frames(lengths))

    def slots(self, speech: Speech) -> Tensor:
        """See Network."""
        return self.projector.slots(speech.lengths)

    def ctc_logits(self, speech: Speech, labels: Tensor | None = None) -> Tensor:
        """See Network."""
        logits = self._unembed(self._project(speech))
        return logits if labels is None else logits[..., labels]

    def remember(self, cache: Cache, tokens: Sequence[int]) -> Cache:
        """See Network. The prompt of this backbone has no place for it."""
        raise OptionError("a gemma backbone can't be told what was said before: leave context out")

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        """See Network."""
        memory: Memory = cache.memory
        chosen = branch(memory.keys_values)
        layers: list[Any] = chosen.layers  # full and sliding ones, all of them filled by prefill
        for layer in layers:
            mine = rows.to(layer.keys.device)  # which need not be where the rows are: placement.py
            layer.keys, layer.values = layer.keys[mine], layer.values[mine]
        return Cache(
            audio=cache.audio[rows],
            slots=cache.slots[rows],
            ctc=cache.ctc[rows],
            languages=cache.languages[rows],
            language_logits=cache.language_logits[rows],
            memory=Memory(keys_values=chosen, real=memory.real[rows], hidden=memory.hidden[rows]),
        )

    def without_audio(self, cache: Cache, rows: Tensor) -> Cache:
        """Always raises OptionError: what follows the audio in the prompt has heard it already."""
        raise OptionError(
            f"{len(rows)} rows were to be read without their sound, which the gemma backbone can't do: leave guidance "
            "and audio_drop at 0"
        )

    def prefill(self, speech: Speech, languages: Tensor | None) -> Cache:
        """See Network."""
        audio = self._project(speech)  # (B, N, D)
        slots = self.slots(speech)
        keys_values = DynamicCache(config=self.backbone.config.get_text_config())
        prompt, real = self._prompt(audio, slots)
        heard = self.stacks.read(prompt, real, keys_values, is_usual=True)[:, -1]  # (B, D)
        logits = self._unembed(heard)[:, self.languages]  # (B, 6)
        guess = logits.argmax(1)
        known = guess if languages is None else torch.where(languages < 0, guess, languages)
        real = F.pad(real, (0, 1), value=True)  # (B, P)
        told = self._embed(self.languages[known][:, None])  # (B, 1, D): the language comes first
        hidden = self.stacks.read(told, real, keys_values, is_usual=True)[:, -1]  # (B, D)
        return Cache(
            audio=audio,
            slots=slots,
            ctc=self._unembed(audio),
            languages=known,
            language_logits=logits,
            memory=Memory(keys_values=keys_values, real=real, hidden=hidden),
        )

    def denoise(
        self,
        canvas: Tensor,
        cache: Cache,
        *,
        lengths: Tensor,
        previous: Tensor | None = None,
        hints: Tensor | None = None,
    ) -> Tensor:
        """See Network. ``hints`` are not used: the backbone was trained without, and its prompt holds the audio."""
        memory: Memory = cache.memory
        places = torch.arange(canvas.shape[1], device=canvas.device)  # (L,)
        real = torch.cat((memory.real, places < lengths[:, None]), dim=1)  # (B, P + L)
        hidden = self.stacks.look(
            Look(
                canvas=canvas,
                positions=memory.real.sum(1)[:, None] + places,  # a row's canvas follows its own prompt
                real=real,
                previous=previous,
                dtype=memory.hidden.dtype,
            ),
            memory.keys_values,
        )  # (B, L, D)
        return self._unembed(hidden)  # (B, L, V)

    def ar_logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """See Network."""
        memory: Memory = cache.memory
        hidden = memory.hidden[:, None]  # (B, 1, D)
        if tokens.shape[1]:
            real = F.pad(memory.real, (0, tokens.shape[1]), value=True)
            read = self.stacks.read(self._embed(tokens), real, branch(memory.keys_values))
            hidden = torch.cat((hidden, read), dim=1)  # (B, U + 1, D)
        return self._unembed(hidden)

    def ar_reader(self, cache: Cache) -> Callable[[Tensor], Tensor]:
        """See Network."""
        memory: Memory = cache.memory
        keys_values, real = branch(memory.keys_values), memory.real

        def read(tokens: Tensor) -> Tensor:
            nonlocal real
            if not tokens.shape[1]:
                return self._unembed(memory.hidden)  # (B, V)
            real = F.pad(real, (0, tokens.shape[1]), value=True)
            return self._unembed(self.stacks.read(self._embed(tokens), real, keys_values)[:, -1])

        return read

    @property
    def stacks(self) -> Stacks:
        """Passes through the backbone, recorded where they can be."""
        return Stacks(self.backbone, self.replays)

    def _project(self, speech: Speech) -> Tensor:
        """Frames, in the projector's own precision, to audio tokens (B, N, D)."""
        frames = speech.frames.to(next(self.projector.parameters()).dtype)
        audio: Tensor = self.projector(frames, speech.lengths)
        return audio

    def _prompt(self, audio: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded prompts (B, P, D), short rows padded on the left, and which places are real (B, P)."""
        rows, size = audio.shape[:2]
        before, after = (self._embed(ids).expand(rows, -1, -1) for ids in (self.before, self.after))
        whole = torch.cat((before, audio.to(before.dtype), after), dim=1)  # (B, P, D)
        unused = (size - slots)[:, None]  # (B, 1)
        places = torch.arange(whole.shape[1], device=audio.device) - unused  # (B, P): where each comes from
        real = places >= 0
        past_audio = places >= self.before.shape[0] + slots[:, None]
        places = (places + unused * past_audio).clamp_min(0)
        return whole.gather(1, places[..., None].expand_as(whole)), real

    def _embed(self, tokens: Tensor) -> Tensor:
        """(..., D), scaled as the backbone scales its own."""
        embedded: Tensor = self.backbone.model.encoder.language_model.embed_tokens(tokens)
        return embedded

    def _unembed(self, hidden: Tensor) -> Tensor:
        """(..., D) to soft-capped float32 logits (..., V), as the backbone's forward does."""
        head, cap = self.backbone.lm_head, self.backbone.final_logit_softcapping
        logits: Tensor = head(hidden.to(head.weight.dtype)).float()
        if torch.is_grad_enabled():
            return torch.tanh(logits / cap) * cap
        return logits.div_(cap).tanh_().mul_(cap)  # in place: they are GBs
