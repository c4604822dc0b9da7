"""On a CUDA device everything says what it says on the CPU. Run with ``pytest -m gpu tests/test_cuda.py``.

In float32, with TF32 off: logits within rounding, texts the same. In bfloat16 where that is what a GPU is used for.
"""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapter_model, write_sources
from conftest import MELS, ON_CARD, SPECIALS, VOCABULARY, random_model, random_speech, row_alone, wake
from test_comparisons import spelling_model
from test_gemma import ROOMY, TIGHT, speech_of, tiny_network, tokens_of
from test_placement import room_for
from torch import Tensor, nn

from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decode import Decoded, Guide, decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.diffusion.pinned import Piece
from diffasr.hotwords import Hotwords
from diffasr.model import checkpoint, placement, plan
from diffasr.model.checkpoint import build
from diffasr.model.config import DecoderConfig, EncoderConfig, ProjectorConfig
from diffasr.model.gemma import GemmaNetwork, build_backbone, full_text_config
from diffasr.model.loaded import Model
from diffasr.model.network import Cache, Speech
from diffasr.model.placement import HOST, place_
from diffasr.redo import rewrite

CARD = torch.device("cuda")
LENGTHS = [90, 12, 50, 33]
LANGUAGES = [0, -1, 3, -1]
pytestmark = ON_CARD


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
    for together in (None, SamplingOptions()):
        texts = ar_texts(model, speech, LANGUAGES, most=12, together=together)
        assert ar_texts(card, there, LANGUAGES, most=12, together=together) == texts and any(texts)


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
