"""The two stacks of a DiffusionGemma over one key/value cache, by passes that a GPU need not ask the host about.

Whether a mask is needed is found out before a pass, so that the pass itself can be recorded: see replay.py. On other
devices, in training and where numbers would have to be asked for, the same passes run as they are.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from diffasr.model.replay import Replays

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the decoder stack is to look at, beside the cache of P places."""

    canvas: Tensor
    """(B, L) tokens."""
    positions: Tensor
    """(B, L) where they stand behind the prompt."""
    real: Tensor
    """(B, P + L) bool: what may be seen, of the cache and of the canvas."""
    previous: Tensor | None
    """(B, L, V) logits of the step before."""
    dtype: torch.dtype
    """Of hidden states."""


@dataclass(frozen=True)
class Stacks:
    """Passes through the encoder and the decoder stack of a backbone."""

    backbone: DiffusionGemmaForBlockDiffusion
    replays: Replays

    def look(self, seen: Look, keys_values: DynamicCache) -> Tensor:
        """One denoising pass, which leaves the cache as it is: (B, L, D), normed.

        With ``previous`` it isn't recorded: logits of a whole vocabulary would have to be kept for each shape.
        """
        decoder = self.backbone.model.decoder
        masks = decoder.create_diffusion_decoder_attention_mask(  # asks the device whether any place is hidden
            config=decoder.text_config,
            inputs_embeds=seen.canvas.new_empty((*seen.canvas.shape, 0), dtype=seen.dtype),  # whose numbers don't count
            cache=keys_values,
            decoder_attention_mask=seen.real,
        )

        def run(held: Sequence[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
            canvas, positions, full, sliding = given
            out = decoder(
                decoder_input_ids=canvas,
                cache=_holding(keys_values, held),
                self_conditioning_logits=seen.previous,
                decoder_attention_mask={_FULL: full, _SLIDING: sliding},
                decoder_position_ids=positions,
            )
            return [out.last_hidden_state]

        held, given = _held(keys_values), (seen.canvas, seen.positions, masks.get(_FULL), masks.get(_SLIDING))
        if seen.previous is None and self._can_record(keys_values):
            return self.replays(run, keys_values, held, given)[0]
        return run(held, given)[0]

    def read(self, embedded: Tensor, real: Tensor, keys_values: DynamicCache, *, is_usual: bool = False) -> Tensor:
        """Append (B, U, D) to the cache, causally: (B, U, D) normed. ``real`` covers all that is then there.

        is_usual: passes of this shape come again and again, so that it is worth while to record one.
        """
        size = embedded.shape[1]
        positions = (real.cumsum(1) - 1).clamp_min(0)[:, -size:]
        if not (is_usual and self._can_record(keys_values)):
            out = self.backbone.model.encoder(
                inputs_embeds=embedded, attention_mask=real, position_ids=positions, cache=keys_values
            )
            hidden: Tensor = out.last_hidden_state
            return hidden
        stack = self.backbone.model.encoder.language_model
        known = {"config": stack.config, "inputs_embeds": embedded, "attention_mask": real, "cache": keys_values}
        full, sliding = create_causal_mask(**known), create_sliding_window_causal_mask(**known)
        is_empty = keys_values.get_seq_length() == 0
        if is_empty:
            layers: list[Any] = keys_values.layers
            for layer in layers:
                layer.lazy_initialization(embedded, embedded)  # which copies a number from the host
        before = branch(keys_values)

        def run(held: Sequence[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
            embedded, positions, full, sliding = given
            grown = _holding(before, held) if held else branch(before)
            masks = {_FULL: full, _SLIDING: sliding}
            out = stack(inputs_embeds=embedded, attention_mask=masks, position_ids=positions, cache=grown)
            return [out.last_hidden_state, *_held(grown)]

        held, given = [] if is_empty else _held(keys_values), (embedded, positions, full, sliding)
        hidden, *grown = self.replays(run, keys_values, held, given)
        _grow_(keys_values, grown, size)
        return hidden

    def _can_record(self, keys_values: DynamicCache) -> bool:
        """Whether no expert asks for a number: of grouped products torch has a kernel in bfloat16 alone."""
        experts = self.backbone.config.get_text_config()._experts_implementation
        is_silent = experts == "grouped_mm" and self.backbone.lm_head.weight.dtype == torch.bfloat16
        return (is_silent or experts == "batched_mm") and self.replays.serves(keys_values, self.backbone)


def branch(keys_values: DynamicCache) -> DynamicCache:
    """A cache that can grow without changing the one it came from: layers grow by new tensors, so those are shared."""
    grown = copy.copy(keys_values)
    grown.layers = [copy.copy(layer) for layer in keys_values.layers]
    return grown


def _held(keys_values: DynamicCache) -> list[Tensor]:
    """Keys and values of the layers in turn."""
    layers: list[Any] = keys_values.layers  # full and sliding ones, all of them filled
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def _holding(keys_values: DynamicCache, held: Sequence[Tensor]) -> DynamicCache:
    """A cache as ``keys_values``, with keys and values from ``held``."""
    other = branch(keys_values)
    _put_(other, held)
    return other


def _put_(keys_values: DynamicCache, held: Sequence[Tensor]) -> None:
    layers: list[Any] = keys_values.layers
    for layer, keys, values in zip(layers, held[::2], held[1::2], strict=True):
        layer.keys, layer.values = keys, values


def _grow_(keys_values: DynamicCache, held: Sequence[Tensor], size: int) -> None:
    """Give a cache what it holds after another ``size`` places."""
    _put_(keys_values, held)
    layers: list[Any] = keys_values.layers
    for layer in layers:
        if layer.is_sliding:
            layer.cumulative_length += size
