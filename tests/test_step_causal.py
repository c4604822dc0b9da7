"""One training step with the causal mask on: drafts, the teacher, shares of rows, smoothing, and the encoder."""

from pathlib import Path as Folder
from typing import Any

import pytest
import torch
from conftest import MELS, VOCABULARY, random_model, tiny_tokenizer, wake
from hypothesis import given
from hypothesis import strategies as st
from test_recordings import SAYS, write_manifest
from torch import Tensor

from diffasr.diffusion.loss import ar_loss, diffusion_loss, distil_loss
from diffasr.model.whisper import WhisperNetwork
from diffasr.text import Tokenizer
from diffasr.train.augment import Augment
from diffasr.train.data import Batch, FeatureStore, collate, read_items
from diffasr.train.recordings import Recordings
from diffasr.train.stages import Stage
from diffasr.train.step import losses

TOKENIZER = tiny_tokenizer()
ALL_AR = {"diffusion": 0.0, "ar": 1.0, "ar_share": 1.0, "blur": 0.0}
ALL_DISTIL = {"diffusion": 0.0, "distil": 1.0, "ar_share": 1.0, "blur": 0.0}


@pytest.fixture
def network() -> WhisperNetwork:
    return wake(random_model()).network.requires_grad_(True)


@pytest.fixture
def teacher() -> WhisperNetwork:
    return random_model(5).network.requires_grad_(True)  # as careless as can be: the step must not move it


@pytest.fixture
def batch(store: FeatureStore, tokenizer: Tokenizer) -> Batch:
    return collate(read_items([store], tokenizer, max_tokens=99), end=tokenizer.end)


@pytest.fixture
def sound(tmp_path: Folder) -> Batch:
    path = write_manifest(tmp_path, SAYS[:5])
    return collate(read_items([Recordings(path, Augment(), mels=MELS)], TOKENIZER, max_tokens=99), end=TOKENIZER.end)


def run(
    network: WhisperNetwork, batch: Batch, seed: int = 0, teacher: WhisperNetwork | None = None, **changes: Any
) -> dict[str, Tensor]:
    stage = Stage(**({"name": "s", "steps": 1, "rates": {"decoder": 1e-3}} | changes))
    dice = torch.Generator().manual_seed(seed)
    return losses(network, batch, stage, tokenizer=TOKENIZER, generator=dice, teacher=teacher)


class Spy:
    """Notes what each call of a method of a network was given."""

    def __init__(self, network: WhisperNetwork, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        plain = getattr(network, name)

        def call(*args: Any, **given: Any) -> Any:
            self.calls.append(args)
            return plain(*args, **given)

        monkeypatch.setattr(network, name, call)


@pytest.mark.parametrize(("name", "more"), [("ar_draft", {}), ("draft_noise", {"ar_draft": 1.0}),
                                            ("drift", {"ar_draft": 1.0, "draft_noise": 0.0})])  # fmt: skip
def test_each_option_of_drafts_changes_the_causal_loss(
    network: WhisperNetwork, batch: Batch, name: str, more: dict[str, float]
) -> None:
    plain, changed = (run(network, batch, **(ALL_AR | more | {name: value}))["ar"] for value in (0.0, 1.0))
    assert plain != changed
    assert changed.isfinite()


def test_drafts_are_read_and_the_truth_is_right(
    network: WhisperNetwork, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(network, "ar_logits", monkeypatch)
    truth = run(network, batch, **ALL_AR)["ar"]
    run(network, batch, **(ALL_AR | {"ar_draft": 1.0, "draft_noise": 0.0}))
    read = [call[0] for call in spy.calls]
    assert torch.equal(read[0], batch.tokens)
    assert read[1].shape == read[0].shape and not torch.equal(read[1], read[0])
    logits = network.ar_logits(read[0], network.prefill(batch.speech, batch.languages))
    said = torch.nn.functional.pad(batch.tokens, (0, 1), value=TOKENIZER.end)
    torch.testing.assert_close(truth, ar_loss(logits, said, batch.lengths + 1).mean())


@pytest.mark.parametrize(("share", "rows"), [(0.0, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_shares_of_rows_go_to_the_two_losses(
    network: WhisperNetwork, batch: Batch, monkeypatch: pytest.MonkeyPatch, share: float, rows: int
) -> None:
    causal, open_ = Spy(network, "ar_logits", monkeypatch), Spy(network, "denoise", monkeypatch)
    chosen = []
    for seed in range(4):
        run(network, batch, seed=seed, ar=1.0, ar_share=share, diffusion_share=share, conditioned_share=0.0)
        chosen.append(tuple(causal.calls[-1][1].languages.tolist()))
    assert {len(call[0]) for call in causal.calls} == {rows}
    assert {len(call[0]) for call in open_.calls} == {rows}
    run(network, batch, ar=1.0, ar_share=1.0, diffusion_share=share, conditioned_share=0.0)
    assert (len(causal.calls[-1][0]), len(open_.calls[-1][0])) == (8, rows), "each share is its own"


def test_which_rows_are_left_out_is_drawn_anew(
    network: WhisperNetwork, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(network, "ar_logits", monkeypatch)
    for seed in range(12):
        run(network, batch, seed=seed, **(ALL_AR | {"ar_share": 0.0}))
    texts = {tuple(call[0][0].tolist()) for call in spy.calls}
    known = {tuple(batch.tokens[row, : int(batch.lengths[row])].tolist()) for row in range(8)}
    assert len(texts) > 3 and texts <= known


def test_smoothing_changes_both_losses(network: WhisperNetwork, batch: Batch) -> None:
    plain, smooth = (run(network, batch, ar=1.0, ar_share=1.0, smoothing=share) for share in (0.0, 0.2))
    assert plain["ar"] != smooth["ar"] and plain["diffusion"] != smooth["diffusion"]


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_smoothing_spreads_its_share_over_the_vocabulary(share: float, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    logits, tokens = torch.randn(2, 4, VOCABULARY, generator=dice), torch.randint(VOCABULARY, (2, 4), generator=dice)
    lengths = torch.tensor([4, 2])
    surprise = -logits.double().log_softmax(-1)
    each = (1 - share) * surprise.gather(2, tokens[..., None])[..., 0] + share * surprise.mean(2)
    expected = torch.stack([each[0].mean(), each[1, :2].mean()]).float()
    for loss in (ar_loss, diffusion_loss):
        torch.testing.assert_close(loss(logits, tokens, lengths, smoothing=share), expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_like_the_student_has_nothing_to_teach(network: WhisperNetwork, batch: Batch) -> None:
    for same in (network, wake(random_model()).network):
        loss = run(network, batch, teacher=same, **ALL_DISTIL)["distil"]
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    network.zero_grad()
    loss.backward()
    grads = [p.grad.abs().max() for p in network.parameters() if p.grad is not None]
    assert max(grads) < 1e-5, "and moves nothing"


def test_another_teacher_pulls_the_student_and_stays_where_it_is(
    network: WhisperNetwork, teacher: WhisperNetwork, batch: Batch
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss = run(network, batch, teacher=teacher, **ALL_DISTIL)["distil"]
    assert loss > 0
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.decoder.layers.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with torch.no_grad():
        for p in network.parameters():
            if p.grad is not None:
                p.sub_(0.05 * p.grad)
    assert run(network, batch, teacher=teacher, **ALL_DISTIL)["distil"] < loss


def test_distance_from_a_teacher_is_that_of_distil_loss(
    network: WhisperNetwork, teacher: WhisperNetwork, batch: Batch
) -> None:
    ours, theirs = (n.ar_logits(batch.tokens, n.prefill(batch.speech, batch.languages)) for n in (network, teacher))
    got = run(network, batch, teacher=teacher, **ALL_DISTIL)["distil"]
    torch.testing.assert_close(got, distil_loss(ours[:, 1:], theirs[:, 1:], batch.lengths - 1).mean())
    assert got == run(network, batch, seed=7, teacher=teacher, **ALL_DISTIL)["distil"], "every row, whatever the dice"


def test_only_the_languages_that_it_teaches(network: WhisperNetwork, teacher: WhisperNetwork, batch: Batch) -> None:
    german = run(network, batch, teacher=teacher, **(ALL_DISTIL | {"teaches": ("de",)}))["distil"]
    both = run(network, batch, teacher=teacher, **(ALL_DISTIL | {"teaches": ("de", "en")}))["distil"]
    none = run(network, batch, teacher=teacher, **(ALL_DISTIL | {"teaches": ("hi",)}))["distil"]
    assert german != both
    assert none == 0 and none.requires_grad, "a process without a row to teach goes on with the others"


def test_a_row_that_drifts_is_not_taught(network: WhisperNetwork, teacher: WhisperNetwork, batch: Batch) -> None:
    drafts = ALL_DISTIL | {"ar_draft": 1.0, "draft_noise": 0.0}
    fitted, drifted = (run(network, batch, teacher=teacher, **(drafts | {"drift": d}))["distil"] for d in (0.0, 1.0))
    assert fitted > 0
    assert drifted < fitted, "its places are not the teacher's"
    alone = run(network, batch, teacher=None, **ALL_DISTIL)
    assert "distil" not in alone


def test_sound_is_heard_in_the_step_and_the_encoder_learns(
    network: WhisperNetwork, teacher: WhisperNetwork, sound: Batch
) -> None:
    parts = run(network, sound, teacher=teacher, ctc=1.0, ar=1.0, distil=1.0, ar_share=1.0)
    assert parts.keys() == {"ctc", "ar", "distil", "diffusion"}
    for name, value in parts.items():
        network.zero_grad()
        value.backward(retain_graph=True)
        grads = [p.grad for p in network.encoder.parameters() if p.grad is not None]
        assert grads and sum(float(g.abs().sum()) for g in grads) > 0, name
    assert all(p.grad is None for p in teacher.parameters())
