"""Training on a CUDA device: its gradients are the CPU's, and runs are finite and resumed. ``pytest -m gpu``."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_loop
import test_loop_sound
import torch
from conftest import MELS, ON_CARD, random_model, wake, write_store
from test_cuda import CARD, MODELS, close, moved, on_card
from test_gemma import speech_of, tiny_network, tokens_of
from test_recordings import SAYS, write_manifest
from torch import Tensor

from diffasr.diffusion.loss import ar_loss, ctc_loss, diffusion_loss
from diffasr.model import checkpoint
from diffasr.model.loaded import Model
from diffasr.model.network import Network
from diffasr.model.placement import HOST
from diffasr.text import Tokenizer
from diffasr.train import loop
from diffasr.train.augment import Augment
from diffasr.train.loop import train

pytestmark = ON_CARD


def gradients(model: Model, device: torch.device, autocast: bool) -> dict[str, Tensor]:
    """Of all three losses, by the parameter's name, the denoiser having been asked without gradients first."""
    network: Any = model.network
    network.requires_grad_(True).zero_grad(set_to_none=True)
    dice = torch.Generator().manual_seed(5)
    mel, sizes = torch.randn(2, MELS, 120, generator=dice).to(device), torch.tensor([120, 77], device=device)
    text = torch.randint(1, 27, (2, 5), generator=dice).to(device)
    counts = torch.tensor([5, 3], device=device)
    hints = torch.tensor([[0, 2, -1, 5, 7], [1, 3, 4, -1, -1]], device=device)
    with loop._rounding(device, autocast):
        cache = network.prefill(network.hear(mel, sizes), torch.tensor([0, 3], device=device))
        with torch.no_grad():
            previous = network.denoise(text, cache, lengths=counts, hints=hints)
        told = network.denoise(text, cache, lengths=counts, previous=previous, hints=hints)
        loss = diffusion_loss(told, text, counts) + ar_loss(network.ar_logits(text[:, :-1], cache), text, counts)
        loss = loss + ctc_loss(cache.ctc, cache.slots, text, counts, blank=0)
    loss.sum().backward()
    return {n: p.grad.float().cpu() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_the_same_and_with_rounding_near(kind: str) -> None:
    model = wake(MODELS[kind]())
    model.network.decoder.future.fill_(0.1)
    wanted = gradients(model, HOST, autocast=False)
    named = {name for name, _ in model.network.named_parameters()} - {"habits", "encoder.embed_positions.weight"}
    assert named <= wanted.keys() and all(float(g.abs().max()) > 0 for n, g in wanted.items() if n in named)
    found = gradients(on_card(model), CARD, autocast=False)
    rounded = gradients(on_card(model), CARD, autocast=True)
    assert found.keys() == wanted.keys() == rounded.keys(), "what is rounded has a gradient too"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-3 * float(value.abs().max()) + 1e-6, msg=name)
    assert (
        close(torch.cat([rounded[n].flatten() for n in wanted]), torch.cat([v.flatten() for v in wanted.values()]))
        > 0.97
    )
    assert close(rounded["decoder.future"], wanted["decoder.future"]) > 0.9, "the mask learns"


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def check_resumed(recipe: Any, folder: Path, stops: list[int]) -> list[dict[str, Any]]:
    """A run learns, is finite, and one that was stopped goes on like it, up to the order of sums."""
    whole = train(recipe, folder / "whole")
    for steps in stops:
        train(recipe, folder / "parts", stop_after=steps)
    train(recipe, folder / "parts")
    logs = [log_of(folder / name) for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        assert one.keys() == other.keys() and (one["stage"], one["step"]) == (other["stage"], other["step"])
        for name in {"ctc", "ar", "distil", "diffusion", "norm"} & one.keys():
            assert math.isfinite(one[name]) and other[name] == pytest.approx(one[name], rel=0.05, abs=0.02)
    trained = checkpoint.load(whole).network.state_dict()
    assert all(bool(value.isfinite().all()) for value in trained.values())
    return logs[0]


def test_a_run_on_features_trains_and_is_resumed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    checkpoint.save(tmp_path / "init", random_model())
    says = [("the cat", "en"), ("a dog", "en"), ("ein hund", "de"), ("das haus", "de")]
    store = write_store(tmp_path / "store", says, tokenizer)
    stages = [
        test_loop.stage(test_loop.CTC, 2, dropout=0.1),
        test_loop.stage(test_loop.DENOISE, 3, mask=0.5, conditioned_share=1.0, audio_drop=0.3),
        test_loop.stage(test_loop.LORA, 2),
    ]
    log = check_resumed(test_loop.recipe(tmp_path / "init", store, *stages, recompute=True), tmp_path, [1, 3])
    assert [entry["step"] for entry in log] == [1, 2, 1, 2, 3, 1, 2]
    assert "cer_diffusion" in log[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_sound_trains_and_is_resumed(tmp_path: Path, workers: int) -> None:
    places = {"sound": write_manifest(tmp_path / "sound", SAYS)}
    for name, seed in (("init", 0), ("teacher", 4)):
        places[name] = tmp_path / name
        checkpoint.save(places[name], random_model(seed))
    recipe = test_loop_sound.recipe(places, 3, augment=Augment(noise=0.5, gain_db=6, joined=0.5))
    log = check_resumed(replace(recipe, workers=workers), tmp_path, [2])
    assert {"ctc", "ar", "distil", "diffusion", "cer_ctc", "cer_diffusion"} <= log[-1].keys()


def test_a_gemma_learns(tmp_path: Path) -> None:
    """LoRA and projector, in one step of all losses, the language model in bfloat16."""
    network: Network = tiny_network(lora=True).to(CARD)
    network.backbone.to(torch.bfloat16)  # type: ignore[attr-defined]
    for experts in ("eager", "grouped_mm"):
        network.backbone.set_experts_implementation(experts)  # type: ignore[attr-defined]
        for parameter in (parameters := dict(network.named_parameters())).values():  # type: ignore[attr-defined]
            parameter.grad = None
        learned = {n: p for n, p in parameters.items() if ".lora_" in n or n.startswith("projector.")}
        for parameter in learned.values():
            parameter.data = parameter.data.float()
        text, counts = tokens_of(2, 4).to(CARD), torch.tensor([4, 2], device=CARD)
        with loop._rounding(CARD, True):
            cache = network.prefill(moved(speech_of([40, 32])), torch.tensor([0, 1], device=CARD))
            told = diffusion_loss(network.denoise(text, cache, lengths=counts), text, counts)
            told = told + ar_loss(network.ar_logits(text[:, :-1], cache), text, counts)
            told = told + ctc_loss(cache.ctc, cache.slots, text, counts, blank=0)
        told.sum().backward()
        grads = {n: p.grad for n, p in learned.items() if p.grad is not None}
        assert all(bool(g.isfinite().all()) for g in grads.values())
        assert {n for n in learned if "lora_B" in n or n.startswith("projector.linear")} <= grads.keys(), experts
