"""Laws of DiffusionGemma behind the Network interface, on a random one of width 32."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_tokenizer
from huggingface_hub import constants
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from diffasr.diffusion.loss import ar_loss, ctc_loss, diffusion_loss
from diffasr.errors import DownloadError, ModelError, OptionError
from diffasr.model import gemma
from diffasr.model.encoder import WhisperEncoder
from diffasr.model.gemma import GemmaNetwork, Prompt, add_lora, build_backbone, full_text_config, load_backbone
from diffasr.model.network import Cache, Network, Speech
from diffasr.model.projector import Projector
from diffasr.train.data import Batch
from diffasr.train.stages import Stage
from diffasr.train.step import losses

VOCABULARY = 40
END = 0
ROOMY, TIGHT = 64, 6  # sliding windows: wider than any prompt here, and narrower


def tiny_text(window: int = ROOMY) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": window,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 256,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "initializer_range": 0.2,  # a random network whose logits differ visibly from place to place
    }


def tiny_network(window: int = ROOMY, *, lora: bool = False) -> GemmaNetwork:
    torch.manual_seed(0)
    network = GemmaNetwork(
        WhisperEncoder(mels=8, width=16, heads=2, layers=1, hidden=16),
        Projector(speech_width=16, hidden=24, width=32, strides=3),
        build_backbone(tiny_text(window), 16),
        Prompt(before=(2, 7, 8), after=(9,), languages=(10, 11, 12, 13, 14, 15), end=END),
    )
    if lora:
        add_lora(network.backbone, 2)
    return network.eval()


def speech_of(lengths: list[int]) -> Speech:
    frames = torch.randn(len(lengths), max(lengths), 16, generator=torch.Generator().manual_seed(1))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Speech(frames=frames * real[..., None], lengths=torch.tensor(lengths))


def row_of(speech: Speech, row: int) -> Speech:
    length = speech.lengths[row : row + 1]
    return Speech(frames=speech.frames[row : row + 1, : int(length)], lengths=length)


def tokens_of(rows: int, size: int) -> Tensor:
    return torch.randint(16, VOCABULARY, (rows, size), generator=torch.Generator().manual_seed(2))


def keys_and_values(cache: Cache) -> list[Tensor]:
    memory: gemma.Memory = cache.memory
    return [t for layer in memory.keys_values.layers for t in (layer.keys, layer.values)]


@pytest.fixture
def network() -> GemmaNetwork:
    return tiny_network()


@pytest.mark.parametrize("window", [ROOMY, TIGHT])
@torch.no_grad()
def test_a_row_of_a_batch_equals_the_row_alone(window: int) -> None:
    network = tiny_network(window)
    speech, languages = speech_of([40, 9, 25]), torch.tensor([0, 3, -1])
    canvas, lengths, text = tokens_of(3, 8), torch.tensor([8, 5, 3]), tokens_of(3, 4)
    previous = torch.randn(3, 8, VOCABULARY)
    together = network.prefill(speech, languages)
    denoised = network.denoise(canvas, together, lengths=lengths, previous=previous)
    written = network.ar_logits(text, together)
    assert all(t.isfinite().all() for t in keys_and_values(together)), "padding must not breed NaN"
    for row in range(3):
        one, size = slice(row, row + 1), int(lengths[row])
        alone = network.prefill(row_of(speech, row), languages[one])
        slots = int(alone.slots)
        assert slots == int(together.slots[row])
        torch.testing.assert_close(together.ctc[one, :slots], alone.ctc)
        torch.testing.assert_close(together.language_logits[one], alone.language_logits)
        expected = network.denoise(canvas[one, :size], alone, lengths=lengths[one], previous=previous[one, :size])
        torch.testing.assert_close(denoised[one, :size], expected)
        torch.testing.assert_close(written[one], network.ar_logits(text[one], alone))


@pytest.mark.parametrize("window", [ROOMY, TIGHT])
@torch.no_grad()
def test_steps_leave_the_cache_as_it_was(window: int) -> None:
    network = tiny_network(window)
    cache = network.prefill(speech_of([40, 9]), None)
    before = [t.clone() for t in keys_and_values(cache)]
    seen = cache.memory.keys_values.get_seq_length()
    first = network.denoise(tokens_of(2, 8), cache, lengths=torch.tensor([8, 8]))
    network.ar_logits(tokens_of(2, 7), cache)
    network.denoise(tokens_of(2, 16), cache, lengths=torch.tensor([16, 2]), previous=torch.randn(2, 16, VOCABULARY))
    assert cache.memory.keys_values.get_seq_length() == seen
    for now, then in zip(keys_and_values(cache), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    again = network.denoise(tokens_of(2, 8), cache, lengths=torch.tensor([8, 8]))
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@torch.no_grad()
def test_agrees_with_the_library_where_it_can_read_token_ids(network: GemmaNetwork) -> None:
    heard = torch.tensor([[20, 21, 22]])  # audio tokens that are the embeddings of words
    network._project = lambda speech: network._embed(heard)  # type: ignore[method-assign]
    network.projector.slots = lambda frames: frames // 8  # type: ignore[method-assign]
    cache = network.prefill(speech_of([24]), torch.tensor([2]))
    canvas, previous = tokens_of(1, 8), torch.randn(1, 8, VOCABULARY)
    ours = network.denoise(canvas, cache, lengths=torch.tensor([8]), previous=previous)
    prompt = torch.tensor([[2, 7, 8, 20, 21, 22, 9, 12]])
    theirs = network.backbone(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=previous).logits
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_autoregressive_logits_are_causal_and_agree_with_one_pass(network: GemmaNetwork) -> None:
    cache = network.prefill(speech_of([30]), torch.tensor([1]))
    text = tokens_of(1, 6)
    logits = network.ar_logits(text, cache)
    assert logits.shape == (1, 7, VOCABULARY)
    torch.testing.assert_close(network.ar_logits(text[:, :0], cache), logits[:, :1])
    torch.testing.assert_close(network.ar_logits(text[:, :4], cache), logits[:, :5])
    read = network.ar_reader(cache)
    told = [read(text[:, :0]), *(read(text[:, n : n + 1]) for n in range(6))]
    torch.testing.assert_close(torch.stack(told, dim=1), logits)
    prompt, _ = network._prompt(cache.audio, cache.slots)
    tail = network._embed(torch.cat((torch.tensor([[11]]), text), dim=1))
    whole = network.backbone.model.encoder(inputs_embeds=torch.cat((prompt, tail), dim=1), cache=DynamicCache())
    torch.testing.assert_close(logits, network._unembed(whole.last_hidden_state[:, -7:]))


@torch.no_grad()
def test_every_audio_slot_matters_and_padding_does_not(network: GemmaNetwork) -> None:
    speech, canvas, lengths = speech_of([32, 16]), tokens_of(2, 8), torch.tensor([8, 8])
    plain = network._project(speech)

    def denoised(audio: Tensor) -> Tensor:
        network._project = lambda _: audio  # type: ignore[method-assign]
        return network.denoise(canvas, network.prefill(speech, torch.tensor([0, 0])), lengths=lengths)

    base = denoised(plain)
    for slot in range(plain.shape[1]):
        changed = plain.clone()
        changed[:, slot] += 1.0
        difference = (denoised(changed) - base).abs().amax((1, 2))
        assert difference[0] > 1e-4, f"slot {slot} of the long row is not heard"
        assert bool(difference[1] > 1e-4) == (slot < 2), f"slot {slot} of the short row"


@torch.no_grad()
def test_language_found_equals_language_given(network: GemmaNetwork) -> None:
    speech = speech_of([40, 9, 25])
    found = network.prefill(speech, None)
    given = network.prefill(speech, found.languages)
    assert torch.equal(found.languages, found.language_logits.argmax(1))
    for a, b in zip(keys_and_values(found), keys_and_values(given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = network.prefill(speech, (found.languages + 1) % 6)
    assert not torch.allclose(other.memory.hidden, found.memory.hidden)
    torch.testing.assert_close(other.language_logits, found.language_logits)


@torch.no_grad()
def test_half_a_minute_gives_188_slots() -> None:
    network: Network = tiny_network()
    speech = network.hear(torch.randn(1, 8, 3000), torch.tensor([3000]))
    assert speech.frames.shape[:2] == (1, 1500)
    assert network.ctc_logits(speech).shape == (1, 188, VOCABULARY)


@torch.no_grad()
def test_logits_are_capped_and_hints_are_ignored(network: GemmaNetwork) -> None:
    assert network._unembed(torch.full((1, 32), 1e6)).abs().max() <= 30
    cache = network.prefill(speech_of([20]), None)
    canvas, lengths = tokens_of(1, 4), torch.tensor([4])
    plain = network.denoise(canvas, cache, lengths=lengths)
    assert torch.equal(plain, network.denoise(canvas, cache, lengths=lengths, hints=torch.ones(1, 4).long()))


@torch.no_grad()
def test_lora_is_silent_at_first_and_separate_in_each_stack() -> None:
    network, plain = tiny_network(lora=True), tiny_network()
    cache, bare = (n.prefill(speech_of([20]), torch.tensor([0])) for n in (network, plain))
    canvas, lengths = tokens_of(1, 4), torch.tensor([4])
    first = network.denoise(canvas, cache, lengths=lengths)
    torch.testing.assert_close(first, plain.denoise(canvas, bare, lengths=lengths), rtol=0, atol=0)
    names = [n for n, p in network.backbone.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * (4 + 4 + 3), "A and B of q, k, v, o in two stacks; the full layer has no v"
    assert all(".self_attn." in n and ".lora_" in n for n in names)
    decoder = network.backbone.model.decoder.layers[0].self_attn.q_proj
    encoder = network.backbone.model.encoder.language_model.layers[0].self_attn.q_proj
    assert encoder.base_layer.weight is decoder.base_layer.weight, "one base weight for both stacks"
    decoder.lora_B["default"].weight.fill_(1.0)
    torch.testing.assert_close(network.ar_logits(canvas, cache), plain.ar_logits(canvas, bare), rtol=0, atol=0)
    assert not torch.allclose(network.denoise(canvas, cache, lengths=lengths), first)


@pytest.mark.parametrize("kind", ["ctc", "diffusion", "autoregressive"])
def test_gradient_reaches_projector_and_lora(kind: str) -> None:
    network = tiny_network(lora=True)
    cache = network.prefill(speech_of([40, 32]), torch.tensor([0, 1]))
    text, lengths = tokens_of(2, 3), torch.tensor([3, 3])
    if kind == "ctc":
        loss = ctc_loss(cache.ctc, cache.slots, text, lengths, blank=END)
    elif kind == "diffusion":
        loss = diffusion_loss(network.denoise(text, cache, lengths=lengths), text, lengths)
    else:
        loss = ar_loss(network.ar_logits(text[:, :-1], cache), text, lengths)
    loss.sum().backward()

    def size(part: torch.nn.Module) -> float:
        return sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None)

    assert size(network.projector) > 0
    assert (size(network.backbone.model.decoder) > 0) == (kind == "diffusion")
    assert (size(network.backbone.model.encoder) > 0) == (kind != "ctc"), "the encoder's LoRA serves both generators"
    assert all(p.grad is None for n, p in network.backbone.named_parameters() if ".lora_" not in n)


@torch.no_grad()
def test_half_precision_backbone_takes_a_float32_projector(network: GemmaNetwork) -> None:
    network.backbone.bfloat16()
    cache = network.prefill(speech_of([20, 9]), None)
    logits = network.denoise(tokens_of(2, 4), cache, lengths=torch.tensor([4, 4]))
    assert cache.audio.dtype == torch.float32
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())


@pytest.mark.parametrize("experts", ["eager", "batched_mm"])
@torch.no_grad()
def test_experts_agree_however_they_are_computed(network: GemmaNetwork, experts: gemma.Experts) -> None:
    other = tiny_network()
    other.backbone.set_experts_implementation(experts)
    canvas, lengths = tokens_of(1, 4), torch.tensor([4])
    a, b = (n.denoise(canvas, n.prefill(speech_of([20]), None), lengths=lengths) for n in (network, other))
    torch.testing.assert_close(a, b)


def test_vision_tower_is_gone(network: GemmaNetwork) -> None:
    assert not [n for n, _ in network.named_parameters() if "vision" in n]


def test_last_layer_must_be_full_attention() -> None:
    text = copy.deepcopy(tiny_text())
    text["layer_types"][-1] = "sliding_attention"
    with pytest.raises(ModelError, match="full_attention"):
        build_backbone(text, 16)


def test_full_configuration_has_the_published_layers() -> None:
    kinds = full_text_config()["layer_types"]
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23, 29]


def test_saved_backbone_comes_back(tmp_path: Path) -> None:
    saved = build_backbone(tiny_text(), 16)
    saved.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path, dtype=torch.float32)
    assert isinstance(loaded, DiffusionGemmaForBlockDiffusion)
    for (name, a), (_, b) in zip(saved.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError):
        load_backbone(tmp_path, dtype=torch.float32)


def test_what_is_no_diffusion_gemma_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_backbone(tmp_path, dtype=torch.float32)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ModelError, match="whisper"):
        load_backbone(tmp_path, dtype=torch.float32)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="owner/name"):
        load_backbone("owner/name", dtype=torch.float32)


def test_selected_rows_are_the_rows_and_leave_the_cache_alone(network: GemmaNetwork) -> None:
    with torch.no_grad():
        cache = network.prefill(speech_of([40, 24, 33]), None)
        before = [t.clone() for t in keys_and_values(cache)]
        rows = torch.tensor([2, 0, 2])
        canvas, lengths = tokens_of(3, 8), torch.tensor([8, 8, 8])
        whole = network.denoise(canvas[rows.argsort()], cache, lengths=lengths)
        some = network.denoise(canvas, network.select(cache, rows), lengths=lengths)
        again = network.denoise(canvas[rows.argsort()], cache, lengths=lengths)
    assert torch.equal(whole, again)
    assert all(torch.equal(a, b) for a, b in zip(before, keys_and_values(cache), strict=True))
    alone = network.denoise(canvas[1:2], network.prefill(row_of(speech_of([40, 24, 33]), 0), None), lengths=lengths[:1])
    torch.testing.assert_close(some[1:2], alone, rtol=1e-4, atol=1e-4)


def test_wanted_labels_are_columns_of_all(network: GemmaNetwork) -> None:
    speech, labels = speech_of([40]), torch.tensor([3, 0, 17])
    with torch.no_grad():
        torch.testing.assert_close(network.ctc_logits(speech, labels), network.ctc_logits(speech)[..., labels])


def test_the_same_training_step_trains_it() -> None:
    network = tiny_network(lora=True)
    stage = Stage(name="x", steps=1, rates={"projector": 1e-3}, ar=1.0, ctc=1.0, draft_share=0.5, ctc_extra=8)
    tokens, lengths = tokens_of(2, 5), torch.tensor([5, 3])
    batch = Batch(
        speech=speech_of([200, 160]), languages=torch.tensor([0, 3]),
        tokens=tokens, lengths=lengths, pieces=tokens, piece_lengths=lengths,
    )  # fmt: skip
    dice = torch.Generator().manual_seed(0)
    parts = losses(network, batch, stage, tokenizer=tiny_tokenizer(), generator=dice)
    assert set(parts) == {"ctc", "ar", "diffusion"}
    torch.stack(list(parts.values())).sum().backward()
    assert all(bool(value.isfinite()) for value in parts.values())
    assert network.projector.linear.weight.grad is not None


def test_what_was_said_before_is_refused() -> None:
    network = tiny_network()
    cache = network.prefill(Speech(frames=torch.zeros(1, 8, 16), lengths=torch.tensor([8])), torch.tensor([0]))
    with pytest.raises(OptionError, match="context"):
        network.remember(cache, [1])
