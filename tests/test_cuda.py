"""On a CUDA device everything says what it says on the CPU. Run with ``pytest -m gpu tests/test_cuda.py``.

In float32, with TF32 off: logits within rounding, texts the same. In bfloat16 where that is what a GPU is used for.
"""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_loop
import test_loop_sound
import torch
from adapters import adapter_model, write_sources
from conftest import MELS, SPECIALS, VOCABULARY, random_model, random_speech, row_alone, wake, write_store
from test_comparisons import spelling_model
from test_gemma import ROOMY, TIGHT, speech_of, tiny_network, tokens_of
from test_placement import room_for
from test_recordings import SAYS, write_manifest
from torch import Tensor, nn

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decode import Decoded, Guide, decode
from diffasr.diffusion.loss import ar_loss, ctc_loss, diffusion_loss
from diffasr.diffusion.pinned import Piece
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.hotwords import Hotwords
from diffasr.model import checkpoint, placement, plan
from diffasr.model.checkpoint import Model, build
from diffasr.model.config import DecoderConfig, EncoderConfig, ProjectorConfig
from diffasr.model.gemma import GemmaNetwork, build_backbone, full_text_config
from diffasr.model.network import Cache, Network, Speech
from diffasr.model.placement import HOST, place_
from diffasr.redo import rewrite
from diffasr.text import Tokenizer
from diffasr.train import loop
from diffasr.train.augment import Augment
from diffasr.train.loop import train

CARD = torch.device("cuda")
LENGTHS = [90, 12, 50, 33]
LANGUAGES = torch.tensor([0, -1, 3, -1])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("default"),  # of drivers and kernels, which are not ours
]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions without TF32, which is their default, and no tensorboard."""
    monkeypatch.setattr(loop, "_board", lambda out: None)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on_card(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    return replace(model, network=copy.deepcopy(model.network).to(device=CARD, dtype=dtype))


def moved(speech: Speech, dtype: torch.dtype = torch.float32) -> Speech:
    return Speech(frames=speech.frames.to(CARD, dtype), lengths=speech.lengths.to(CARD))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].device.type == CARD.type, name
        torch.testing.assert_close(
            found[name].cpu(), value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def alike(found: Decoded, wanted: Decoded) -> None:
    assert (found.text, found.language, found.steps) == (wanted.text, wanted.language, wanted.steps)
    assert found.tokens == wanted.tokens and [w.word for w in found.words] == [w.word for w in wanted.words]
    assert found.avg_logprob == pytest.approx(wanted.avg_logprob, abs=1e-3)
    assert [a.text for a in found.alternatives] == [a.text for a in wanted.alternatives]
    for one, other in zip(found.words, wanted.words, strict=True):
        assert (one.first, one.last) == (other.first, other.last)
        assert one.belief == pytest.approx(other.belief, abs=1e-3)


def wide_model() -> Model:
    """A random model with heads of 64 numbers, as real ones have: other attention kernels take them."""
    small = random_model()
    config = replace(
        small.config,
        encoder=EncoderConfig(mels=MELS, width=128, heads=2, layers=2, hidden=64),
        projector=ProjectorConfig(hidden=64, strides=2, layers=1),
        decoder=DecoderConfig(vocabulary=VOCABULARY, width=128, heads=2, layers=2, hidden=64, positions=200),
    )
    torch.manual_seed(2)
    return replace(small, config=config, network=build(config, small.tokenizer).eval().requires_grad_(False))


MODELS = {"heads of 16": random_model, "heads of 64": wide_model, "labels of letters": spelling_model}


@torch.inference_mode()
def all_logits(network: Any, device: torch.device) -> dict[str, Tensor]:
    """Whatever a network can be asked, from the sound on."""
    dice = torch.Generator().manual_seed(4)
    mel, sizes = torch.randn(3, MELS, 181, generator=dice), torch.tensor([181, 60, 122])
    canvas, lengths = torch.randint(VOCABULARY, (3, 16), generator=dice).to(device), torch.tensor([16, 9, 5])
    previous = torch.randn(3, 16, VOCABULARY, generator=dice).to(device)
    hints = torch.randint(-1, 6, (3, 16), generator=dice).to(device)
    known: dict[str, Any] = {"lengths": lengths.to(device), "previous": previous, "hints": hints}
    speech = network.hear(mel.to(device), sizes.to(device))
    cache: Cache = network.prefill(speech, torch.tensor([-1, 0, 3], device=device))
    rows = torch.tensor([2, 2, 0, 0, 1, 1], device=device)
    twice = network.select(cache, rows)
    shared: dict[str, Any] = {name: value[rows] for name, value in known.items()}
    read = network.ar_reader(cache)
    told = [read(canvas[:, :0]), read(canvas[:, :3]), read(canvas[:, 3:4])]
    out = {
        "frames": speech.frames,
        "ctc": network.ctc_logits(speech),
        "some labels": network.ctc_logits(speech, torch.tensor([0, 3, 5], device=device)),
        "audio": cache.audio,
        "languages": cache.languages,
        "language logits": cache.language_logits,
        "denoise": network.denoise(canvas, cache, lengths=known["lengths"]),
        "all it may know": network.denoise(canvas, cache, **known),
        "rows that share": network.denoise(canvas[rows], twice, **shared),
        "token by token": torch.stack(told),
        "causal": network.ar_logits(canvas, cache),
    }
    if not isinstance(network, GemmaNetwork):
        deaf = network.without_audio(cache, torch.tensor([True, False, True], device=device))
        out["deaf"] = network.denoise(canvas, deaf, **known)
        out["context"] = network.denoise(canvas, network.remember(cache, [1, 2, 3]), **known)
    return out


@pytest.mark.parametrize("kind", MODELS)
def test_a_whisper_says_the_same(kind: str) -> None:
    model = wake(MODELS[kind]())
    same(all_logits(on_card(model).network, CARD), all_logits(model.network, HOST))


@pytest.mark.parametrize("kind", MODELS)
def test_a_whisper_in_half_precision_comes_near(kind: str) -> None:
    """As ``load`` gives it on a GPU."""
    model = wake(MODELS[kind]())
    half = on_card(model, torch.bfloat16)
    speech = random_speech(LENGTHS) if kind != "heads of 64" else None
    mel = torch.randn(2, MELS, 120, generator=torch.Generator().manual_seed(1))
    sizes, known = torch.tensor([120, 77]), torch.tensor([0, 3])
    with torch.inference_mode():
        wanted = model.network.prefill(model.network.hear(mel, sizes), known)
        heard = half.network.hear(mel.to(CARD, torch.bfloat16), sizes.to(CARD))
        found = half.network.prefill(heard, known.to(CARD))
        canvas, lengths = torch.zeros(2, 8, dtype=torch.long), torch.tensor([8, 8])
        logits = half.network.denoise(canvas.to(CARD), found, lengths=lengths.to(CARD))
        assert close(logits, model.network.denoise(canvas, wanted, lengths=lengths)) > 0.99
    assert close(found.ctc, wanted.ctc) > 0.99
    for accept in ("auto", "entropy", "threshold") if speech is not None else ():
        options = SamplingOptions(steps=3, accept=accept, ctc_weight=0.2, self_conditioning=True)  # type: ignore[arg-type]
        for said in decode(half, moved(random_speech(LENGTHS), torch.bfloat16), None, options):
            assert said.steps >= 1 and math.isfinite(said.avg_logprob)


def close(found: Tensor, wanted: Tensor) -> float:
    """The cosine between two tensors."""
    return float(nn.functional.cosine_similarity(found.float().cpu().flatten(), wanted.float().flatten(), dim=0))


OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {"accept": "prefix", "seed_noise": 0.2},
    "prefix from noise": {"accept": "prefix", "start": "noise"},
    "entropy": {"accept": "entropy", "temperature": 0.5, "entropy_bound": 1.0},
    "threshold": {"accept": "threshold", "threshold": 0.5, "position_bias": 1.0},
    "all": {"accept": "all", "start": "noise", "temperature": 1.0},
    "joint": {"accept": "joint"},
    "joint votes": {"accept": "joint", "votes": 3, "alternatives": 2},
    "a sample": {"accept": "prefix", "start": "sample", "votes": 3, "merge": "mbr", "alternatives": 3},
    "all that helps": {"accept": "entropy", "ctc_weight": 0.3, "guidance": 0.5, "self_conditioning": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_whisper_writes_the_same_and_each_row_as_alone(kind: str) -> None:
    options = SamplingOptions(steps=4, **OPTIONS[kind])
    model = spelling_model(sees_right=True) if options.accept == "joint" else random_model()
    card, speech = on_card(wake(model)), random_speech(LENGTHS)
    wanted, found = decode(model, speech, LANGUAGES, options), decode(card, moved(speech), LANGUAGES, options)
    assert len({d.text for d in wanted}) > 1
    for row, (one, other) in enumerate(zip(found, wanted, strict=True)):
        alike(one, other)
        (alone,) = decode(card, moved(row_alone(speech, row)), LANGUAGES[row : row + 1], options)
        alike(alone, other)


def test_what_a_caller_knows_is_heeded_the_same() -> None:
    model, speech = wake(random_model()), random_speech(LENGTHS)
    card, options = on_card(model), SamplingOptions(steps=3)
    guide = Guide(hotwords=Hotwords(words=("cat", "the dog"), threshold=30.0), context="the dog and")
    plain = decode(model, speech, LANGUAGES, options)
    wanted = decode(model, speech, LANGUAGES, options, guide=guide)
    assert [d.text for d in wanted] != [d.text for d in plain]
    for one, other in zip(decode(card, moved(speech), LANGUAGES, options, guide=guide), wanted, strict=True):
        alike(one, other)
    kept = [Piece((), False), Piece(tuple(model.tokenizer.encode("cat")), True), Piece((), False)]
    sound = row_alone(speech, 0)
    texts = [rewrite(m, s, "en", kept, steps=4).text for m, s in ((model, sound), (card, moved(sound)))]
    assert texts[0] == texts[1] and "cat" in texts[0]


def test_the_comparisons_write_the_same() -> None:
    model, speech = spelling_model(), random_speech(LENGTHS)
    with torch.no_grad():
        model.network.decoder.embed_tokens.weight[-len(SPECIALS) :] *= 0.1  # or it would say what it last read: no text
    card, there = on_card(model), moved(speech)
    assert ctc_texts(card, there) == ctc_texts(model, speech)
    for weight in (0.0, 0.43):
        texts = ar_texts(model, speech, LANGUAGES, most=12, joint_weight=weight)
        assert ar_texts(card, there, LANGUAGES, most=12, joint_weight=weight) == texts and any(texts)


@pytest.mark.parametrize("window", [ROOMY, TIGHT])
def test_a_gemma_says_the_same(window: int) -> None:
    network = tiny_network(window).requires_grad_(False)
    network.backbone.set_experts_implementation("eager")
    card = copy.deepcopy(network).to(CARD)
    same(all_logits(card, CARD), all_logits(network, HOST), 1e-3)


@torch.inference_mode()
def test_a_gemma_with_grouped_experts_in_half_precision_comes_near() -> None:
    network = tiny_network().requires_grad_(False)
    card = copy.deepcopy(network).to(CARD)
    card.backbone.to(torch.bfloat16)
    speech, canvas, lengths = speech_of([40, 9]), tokens_of(2, 8), torch.tensor([8, 8])
    wanted = network.denoise(canvas, network.prefill(speech, torch.tensor([0, 3])), lengths=lengths)
    for experts in ("eager", "grouped_mm", "batched_mm"):
        card.backbone.set_experts_implementation(experts)
        cache = card.prefill(moved(speech), torch.tensor([0, 3]).to(CARD))
        assert close(card.denoise(canvas.to(CARD), cache, lengths=lengths.to(CARD)), wanted) > 0.98, experts


@torch.inference_mode()
def test_the_experts_of_the_26_b_agree_however_they_are_computed() -> None:
    """One layer of them at their real size, in bfloat16."""
    text = full_text_config() | {"vocab_size": 64, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with CARD:
            torch.manual_seed(0)
            backbone = build_backbone(text, 192)
    finally:
        torch.set_default_dtype(before)
    experts: Any = backbone.model.decoder.layers[0].experts
    hidden = torch.randn(192, 2816, device=CARD, dtype=torch.bfloat16)
    shares, chosen = torch.rand(192, 128, device=CARD).topk(8)
    told = {}
    for kind in ("eager", "grouped_mm"):
        backbone.set_experts_implementation(kind)
        told[kind] = experts(hidden, chosen, shares / shares.sum(1, keepdim=True))
    assert float(told["eager"].abs().max()) > 0
    assert close(told["grouped_mm"], told["eager"].cpu()) > 0.999


def test_a_gemma_laid_over_card_and_host_says_the_same() -> None:
    network = tiny_network(lora=True).requires_grad_(False)
    network.backbone.set_experts_implementation("eager")
    wanted, card = all_logits(network, HOST), copy.deepcopy(network)
    place_(card, CARD, [CARD, HOST, CARD])

    def homes() -> set[tuple[str, str]]:
        layers = ([*n.split(".layers."), p.device.type] for n, p in card.backbone.named_parameters() if ".layers." in n)
        return {(name[0], device) for _, name, device in layers}

    before = homes()
    assert before == {("0", CARD.type), ("1", "cpu"), ("2", CARD.type)}
    same(all_logits(card, CARD), wanted, 1e-3)
    assert homes() == before


def test_load_lays_what_has_no_room_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "a", adapter_model(write_sources(tmp_path)))
    monkeypatch.setattr(plan, "RESERVE", 0.0)
    loans: list[torch.device] = []
    lent = placement.lent
    monkeypatch.setattr(placement, "lent", lambda value, card: loans.append(card) or lent(value, card))
    memory = room_for(tmp_path / "a", "bfloat16", 2.1)
    speech = Speech(frames=torch.randn(2, 80, 32), lengths=torch.tensor([80, 48]))
    canvas, lengths = torch.zeros(2, 16, dtype=torch.long, device=CARD), torch.tensor([16, 9], device=CARD)
    said = []
    for room in (None, memory):
        loans.clear()
        network = checkpoint.load(tmp_path / "a", device=f"{CARD.type}:0", gpu_memory=room).network
        with torch.inference_mode():
            cache = network.prefill(moved(speech, torch.bfloat16), torch.tensor([0, 3]).to(CARD))
            said.append(network.denoise(canvas, cache, lengths=lengths))
    assert loans and close(said[1], said[0].cpu()) > 0.999


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
