"""One training step: its losses are those of loss.py, its gradients reach the right parts, its options act."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, random_speech, tiny_tokenizer, wake
from torch import Tensor

from diffasr.audio import log_mel
from diffasr.diffusion import batched, ctc
from diffasr.diffusion.loss import ar_loss, ctc_loss
from diffasr.model.network import Speech
from diffasr.model.whisper import WhisperNetwork
from diffasr.text import Tokenizer
from diffasr.train.data import Batch, FeatureStore, collate, read_items
from diffasr.train.stages import Stage
from diffasr.train.step import blank_mel, blank_spans, dropped, in_silence, losses

END = tiny_tokenizer().end


@pytest.fixture
def network() -> WhisperNetwork:
    return wake(random_model()).network.requires_grad_(True)


@pytest.fixture
def batch(store: FeatureStore, tokenizer: Tokenizer) -> Batch:
    return collate(read_items([store], tokenizer, max_tokens=99), end=tokenizer.end)


def stage(**changes: Any) -> Stage:
    return Stage(**({"name": "s", "steps": 1, "rates": {"decoder": 1e-3}} | changes))


def run(network: WhisperNetwork, batch: Batch, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return losses(network, batch, stage(**changes), tokenizer=tiny_tokenizer(), generator=dice)


def grown(network: WhisperNetwork, part: str) -> float:
    """Sum of the gradients in the parameters whose name starts with ``part``."""
    found = [p.grad.abs().sum() for n, p in network.named_parameters() if n.startswith(part) and p.grad is not None]
    return float(torch.stack(found).sum()) if found else 0.0


@pytest.mark.parametrize("weights", [{"ctc": 1.0}, {"ar": 1.0}, {"diffusion": 1.0}, {"ctc": 1.0, "ar": 1.0}])
def test_only_the_losses_asked_for_and_all_finite(network, batch: Batch, weights: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    parts = run(network, batch, **({"diffusion": 0.0} | weights))
    assert parts.keys() == weights.keys()
    assert all(value.isfinite() and value > 0 and value.ndim == 0 for value in parts.values())


@pytest.mark.parametrize(
    ("loss", "reached", "spared"),
    [
        ("ctc", ["projector.", "decoder.embed_tokens"], ["decoder.layers", "decoder.conditioning", "decoder.future"]),
        ("ar", ["decoder.layers", "decoder.embed_tokens"], ["projector.", "decoder.conditioning", "decoder.future"]),
        (
            "diffusion",
            ["decoder.layers", "decoder.conditioning", "decoder.future", "decoder.embed_tokens"],
            ["projector."],
        ),
    ],
)
def test_gradients_reach_the_parts(
    network: WhisperNetwork, batch: Batch, loss: str, reached: list[str], spared: list[str]
) -> None:
    run(network, batch, **({"diffusion": 0.0, "conditioned_share": 1.0, "hint_drop": 0.0} | {loss: 1.0}))[
        loss
    ].backward()
    assert all(grown(network, part) > 0 for part in reached)
    assert all(grown(network, part) == 0 for part in [*spared, "encoder."])


def test_ctc_is_the_loss_over_the_whole_vocabulary_when_every_label_is_drawn(
    network: WhisperNetwork, batch: Batch
) -> None:
    got = run(network, batch, diffusion=0.0, ctc=1.0, ctc_extra=1000)["ctc"]
    logits, slots = network.ctc_logits(batch.speech), network.slots(batch.speech)
    expected = ctc_loss(logits, slots, batch.tokens, batch.lengths, blank=END).mean()
    torch.testing.assert_close(got, expected)
    assert run(network, batch, diffusion=0.0, ctc=1.0, ctc_extra=2)["ctc"] != got


def test_ar_is_the_loss_of_the_share_of_rows(network: WhisperNetwork, batch: Batch) -> None:
    got = run(network, batch, diffusion=0.0, ar=1.0, ar_share=1.0)["ar"]
    tokens = torch.nn.functional.pad(batch.tokens, (0, 1), value=END)
    logits = network.ar_logits(batch.tokens, network.prefill(batch.speech, batch.languages))
    each = ar_loss(logits, tokens, batch.lengths + 1)
    torch.testing.assert_close(got, each.mean())
    single = run(network, batch, diffusion=0.0, ar=1.0, ar_share=0.0)["ar"]
    assert (each - single).abs().min() < 1e-4, "one row at least"


def test_the_generator_decides_all(network: WhisperNetwork, batch: Batch) -> None:
    options = {"ctc": 1.0, "ar": 1.0, "draft_share": 0.5, "mask": 0.5}
    first, again, other = (run(network, batch, seed=s, **options) for s in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert all(first[k] != other[k] for k in first)


class Spy:
    """Notes what each call of ``denoise`` was given."""

    def __init__(self, network: WhisperNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        plain = network.denoise

        def denoise(canvas: Tensor, cache: Any, **given: Any) -> Tensor:
            self.calls.append({"canvas": canvas, "grad": torch.is_grad_enabled()} | given)
            return plain(canvas, cache, **given)

        monkeypatch.setattr(network, "denoise", denoise)


@pytest.fixture
def spy(network: WhisperNetwork, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(network, monkeypatch)


def heard(network: WhisperNetwork, batch: Batch) -> list[ctc.Path]:
    logits = network.prefill(batch.speech, batch.languages).ctc.detach()
    return batched.heard(logits, network.slots(batch.speech), blank=END, joined=tiny_tokenizer().joined)


def clean_canvas(batch: Batch, size: int, end: int) -> Tensor:
    return torch.nn.functional.pad(batch.tokens, (0, size - batch.tokens.shape[1]), value=end)


def test_canvases_are_the_truth_with_noise_or_nothing_but_noise(network, batch: Batch, spy: Spy) -> None:  # type: ignore[no-untyped-def]
    shares = []
    for full_share in (0.0, 1.0):
        spy.calls.clear()
        for seed in range(20):
            run(network, batch, seed=seed, full_share=full_share, conditioned_share=0.0, slack=0)
        same = [c["canvas"] == clean_canvas(batch, c["canvas"].shape[1], END) for c in spy.calls]
        shares.append(torch.stack(same).float().mean().item())
    assert shares == pytest.approx([0.5, 0.0], abs=0.08)


def test_drafts_are_what_ctc_heard_fitted_to_the_truth(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    options = {"draft_share": 1.0, "draft_noise": 0.0, "conditioned_share": 0.0, "hint_drop": 0.0}
    run(network, batch, blur=0.0, **options)
    paths, canvas, hints = heard(network, batch), spy.calls[0]["canvas"], spy.calls[0]["hints"]
    size = canvas.shape[1]
    truth = clean_canvas(batch, size, END)
    for row, (path, length) in enumerate(zip(paths, batch.lengths.tolist(), strict=True)):
        _, slots = ctc.fitted(path, truth[row, :length].tolist(), fill=[0] * size)
        assert hints[row].tolist() == slots + [-1] * (size - length)
        known = [place for place, slot in enumerate(slots) if slot >= 0]
        heard_there = list(zip(path.slots, path.tokens, strict=True))  # two tokens may begin in one label
        assert all((slots[place], int(canvas[row, place])) in heard_there for place in known)
        assert (canvas[row, length:] == END).all()
    assert (hints >= 0).any()
    assert torch.equal(spy.calls[0]["lengths"], torch.full((len(paths),), size))
    run(network, batch, blur=50.0, **options)
    assert not torch.equal(spy.calls[1]["canvas"], canvas)
    run(network, batch, blur=0.0, **(options | {"draft_noise": 1.0}))
    assert not torch.equal(spy.calls[2]["canvas"], canvas)


def test_who_hears_all_gets_the_truth_as_draft(
    network: WhisperNetwork, batch: Batch, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a token that CTC lost does not make the ones behind it wrong."""
    said = [batch.tokens[row, :n].tolist() for row, n in enumerate(batch.lengths.tolist())]
    for lost in (0, 1):
        paths = [ctc.Path(row[lost:], list(range(lost, len(row))), 0.0) for row in said]
        monkeypatch.setattr(batched, "heard", lambda *args, paths=paths, **names: paths)
        run(network, batch, draft_share=1.0, draft_noise=0.0, conditioned_share=0.0, hint_drop=0.0, blur=0.0)
        canvas, hints = spy.calls[-1]["canvas"], spy.calls[-1]["hints"]
        assert torch.equal(canvas[:, lost:], clean_canvas(batch, canvas.shape[1], END)[:, lost:])
        for row, tokens in enumerate(said):
            slots = [*[-1] * lost, *range(lost, len(tokens))]
            if tokens[:lost] != tokens[lost : 2 * lost] or not lost:
                assert hints[row, : len(tokens)].tolist() == slots


def test_hints_are_dropped_row_by_row(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    for hint_drop in (0.0, 1.0):
        run(network, batch, hint_drop=hint_drop, blur=0.0, conditioned_share=0.0)
    assert (spy.calls[0]["hints"] >= 0).any(1).all()
    assert (spy.calls[1]["hints"] == -1).all()


def test_self_conditioning_looks_once_without_gradient(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    run(network, batch, conditioned_share=1.0)
    first, second = spy.calls
    assert (first["grad"], second["grad"]) == (False, True)
    assert first.get("previous") is None
    assert not second["previous"].requires_grad
    assert torch.equal(first["canvas"], second["canvas"])
    run(network, batch, conditioned_share=0.0)
    assert len(spy.calls) == 3
    assert spy.calls[2]["previous"] is None


def test_an_unrolled_canvas_is_the_models_own_draft(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    run(network, batch, conditioned_share=1.0, unroll_share=1.0)
    first, second = spy.calls
    assert torch.equal(second["canvas"], second["previous"].argmax(-1))
    assert not torch.equal(first["canvas"], second["canvas"])
    run(network, batch, conditioned_share=0.0, unroll_share=1.0)
    assert torch.equal(spy.calls[2]["canvas"], first["canvas"]), "without a look before there is no draft"


def test_unrolling_takes_its_share_of_the_rows(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    rows = []
    for seed in range(12):
        spy.calls.clear()
        run(network, batch, seed=seed, conditioned_share=1.0, unroll_share=0.5)
        first, second = spy.calls
        own = second["canvas"] == second["previous"].argmax(-1)
        kept = second["canvas"] == first["canvas"]
        assert (own.all(1) | kept.all(1)).all(), "a whole row, or none of it"
        rows += own.all(1).tolist()
    assert sum(rows) / len(rows) == pytest.approx(0.5, abs=0.15)


def test_slack_varies_the_canvas(network: WhisperNetwork, batch: Batch, spy: Spy) -> None:
    sizes = {}
    for slack in (0, 40):
        spy.calls.clear()
        for seed in range(6):
            run(network, batch, seed=seed, slack=slack, conditioned_share=0.0)
        sizes[slack] = {c["canvas"].shape[1] for c in spy.calls}
    assert len(sizes[0]) == 1
    assert len(sizes[40]) > 1
    assert sizes[0] | sizes[40] <= set(ctc.BUCKETS)


def test_masking_reaches_the_loss(network: WhisperNetwork, batch: Batch) -> None:
    plain, masked = (run(network, batch, diffusion=0.0, ctc=1.0, ctc_extra=1000, mask=m)["ctc"] for m in (0.0, 1.0))
    assert plain != masked


LENGTHS = [400, 30, 10, 160]


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_blanked_spans_are_short_and_inside_and_the_rest_is_untouched() -> None:
    speech = Speech(frames=random_speech(LENGTHS).frames + 5.0, lengths=torch.tensor(LENGTHS))
    before = speech.frames.clone()
    masked = blank_spans(speech, 1.0, dice())
    assert torch.equal(speech.frames, before)
    gone = (masked.frames == 0).all(2)
    assert torch.equal(masked.frames[~gone], before[~gone])
    for row, length in enumerate(LENGTHS):
        spans = 1 + length // 150
        count = int(gone[row, :length].sum())
        assert 1 <= count <= 20 * spans
        edges = torch.nn.functional.pad(gone[row, :length].int(), (1, 0)).diff()
        assert 1 <= int((edges == 1).sum()) <= spans


def test_blanking_takes_its_share_of_the_rows_and_its_dice() -> None:
    speech = random_speech([60] * 400)
    assert blank_spans(speech, 0.0, dice()) is speech
    masked = blank_spans(speech, 0.25, dice())
    hit = (masked.frames == 0).all(2).any(1).float().mean().item()
    assert hit == pytest.approx(0.25, abs=0.06)
    assert torch.equal(masked.frames, blank_spans(speech, 0.25, dice()).frames)
    assert not torch.equal(masked.frames, blank_spans(speech, 0.25, dice(1)).frames)


def test_some_rows_learn_to_write_without_sound_and_without_hints(
    network: WhisperNetwork, batch: Batch, spy: Spy
) -> None:
    other = replace(batch, speech=random_speech(batch.speech.lengths.tolist(), seed=9))
    fixed = {"draft_share": 0.0, "conditioned_share": 0.0, "hint_drop": 0.0}
    plain, deaf, also_deaf = (
        run(network, heard_, audio_drop=share, **fixed)["diffusion"]
        for heard_, share in ((batch, 0.0), (batch, 1.0), (other, 1.0))
    )
    hints = [call["hints"] for call in spy.calls]
    assert (hints[0] >= 0).any()
    assert (hints[1] == -1).all()
    assert plain != deaf
    torch.testing.assert_close(deaf, also_deaf)
    told = []
    for share in (0.0, 0.5):
        spy.calls.clear()
        for seed in range(20):
            run(network, batch, seed=seed, audio_drop=share, **fixed)
        told.append(torch.cat([(call["hints"] >= 0).any(1) for call in spy.calls]).float().mean().item())
    assert told[1] == pytest.approx(told[0] / 2, abs=0.12)


def test_dropout_spares_the_mean_and_takes_its_dice_from_the_generator() -> None:
    speech = Speech(frames=torch.ones(4, 100, 32), lengths=torch.tensor([100, 50, 20, 1]))
    frames = dropped(speech, 0.25, torch.Generator().manual_seed(0)).frames
    assert sorted(frames.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (frames == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert frames.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(frames, dropped(speech, 0.25, torch.Generator().manual_seed(0)).frames)
    assert dropped(speech, 0.0, torch.Generator()) is speech


def test_dropout_is_an_option_of_the_stage(network: WhisperNetwork, batch: Batch) -> None:
    plain, dropping = (
        run(network, batch, diffusion=0.0, ctc=1.0, ctc_extra=1000, dropout=d)["ctc"] for d in (0.0, 0.5)
    )
    assert plain != dropping


def test_blanked_mel_is_two_bands_and_short_spans_as_quiet_as_it_gets() -> None:
    lengths = torch.tensor([640, 250])
    features = torch.rand(2, 80, 700, generator=dice(3)).masked_fill(
        (torch.arange(700) >= lengths[:, None])[:, None], 0
    )
    assert blank_mel(features, lengths, 0.0, dice()) is features
    out = blank_mel(features, lengths, 1.0, dice())
    for row, length in enumerate(lengths.tolist()):
        quiet = features[row, :, :length].max() - 2.0
        gone = out[row] == quiet
        assert torch.equal(out[row][~gone], features[row][~gone])
        bands, times = gone[:, :length].all(1), gone[:, :length].all(0)
        assert torch.equal(gone[:, :length], bands[:, None] | times), "nothing but whole bands and whole moments"
        assert 1 <= int(bands.sum()) <= 20 and 1 <= int(times.sum()) <= 30 * (1 + length // 300)
    hit = (blank_mel(features[:1].expand(300, -1, -1), lengths[:1].expand(300), 0.3, dice()) < 0).flatten(1).any(1)
    assert hit.float().mean().item() == pytest.approx(0.3, abs=0.08)


def test_silence_behind_a_clip_is_what_log_mel_makes_of_it() -> None:
    """But at the edge, where a padded clip is not mirrored."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    short, wanted = torch.from_numpy(log_mel(sound)), torch.from_numpy(log_mel(sound, padded=True))
    found = in_silence(torch.nn.functional.pad(short, (0, 50))[None], torch.tensor([100]))[0]
    assert found.shape == wanted.shape
    edge = slice(97, 103)
    found[:, edge] = wanted[:, edge] = 0.0
    assert torch.allclose(found, wanted, atol=1e-4)
