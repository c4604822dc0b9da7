"""What the drafter learned at each place is what decoding asks of it. It follows the decoder, and can learn to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as Folder

import pytest
import torch
from conftest import random_model, random_speech
from test_reread import KNOWN, blind
from test_step_causal import batch, run  # noqa: F401  (a fixture)
from torch import Tensor

from diffasr.diffusion.sampler import SamplingOptions
from diffasr.errors import ModelError, OptionError, RecipeError
from diffasr.model import checkpoint, quantised
from diffasr.model.checkpoint import Model
from diffasr.model.drafter import DEPTH, Drafter, guesses
from diffasr.model.reread import Rereader
from diffasr.model.whisper import WhisperNetwork
from diffasr.train.data import Batch
from diffasr.train.loop import _prepare
from diffasr.train.stages import Stage
from diffasr.transcribe import load

SAMPLES = Folder(__file__).parent.parent / "samples"
TEXT = [9, 10, 11, 12, 13, 14]


def drafting(layers: int = 1) -> Model:
    """A model whose drafter has random weights."""
    plain = random_model()
    config = replace(plain.config, decoder=replace(plain.config.decoder, draft=layers))  # type: ignore[type-var]
    torch.manual_seed(3)
    network = checkpoint.build(config, plain.tokenizer).eval().requires_grad_(False)
    return replace(plain, network=network, config=config)


def drafter_of(network: WhisperNetwork) -> Drafter:
    assert network.decoder.drafter is not None
    return network.decoder.drafter


NETWORK = blind(drafting(2))
CACHE = NETWORK.prefill(random_speech([60, 31, 44]), KNOWN)


def learned(text: list[int], row: int) -> list[Tensor]:
    """Logits of the guesses at every place of a text, as training makes them: for each depth (U - n, V)."""
    alone = NETWORK.select(CACHE, torch.tensor([row]))
    prefix = NETWORK.prefixes[alone.languages]
    tokens = torch.cat((prefix, torch.tensor([text])), dim=1)
    found = guesses(NETWORK.decoder, drafter_of(NETWORK), tokens, alone.memory, prefix.shape[1])
    return [NETWORK.decoder.unembed(told)[0] for told, _ in found]


@pytest.mark.parametrize("row", [0, 1, 2])
def test_decoding_asks_what_training_taught(row: int) -> None:
    reader = NETWORK.rereader(CACHE)
    assert reader is not None
    reader.read([(0, [8, 8]), (1, [15]), (2, [])])
    reader.read([(row, TEXT)])
    for depth, wanted in enumerate(learned(TEXT, row)):
        for place in range(len(TEXT) - depth):
            told = reader.ahead([row], place, TEXT[place : place + depth + 1])[0]
            torch.testing.assert_close(told, wanted[place], rtol=1e-4, atol=1e-4)


def test_what_is_asked_does_not_depend_on_what_was_asked_before() -> None:
    def told(*questions: tuple[int, list[int]]) -> list[Tensor]:
        reader = NETWORK.rereader(CACHE)
        assert reader is not None
        reader.read([(0, TEXT)])
        return [reader.ahead([0], place, tokens)[0] for place, tokens in questions]

    last = (2, [15, 16])
    for before in ([(2, [15])], [(2, [15]), (2, [15, 17])], [(1, [15])], [(2, [16])], [last]):
        torch.testing.assert_close(told(*before, last)[-1], told(last)[-1], rtol=1e-4, atol=1e-4)


def test_new_tokens_stand_behind_the_text_up_to_their_place_and_not_behind_its_own() -> None:
    reader = NETWORK.rereader(CACHE)
    assert reader is not None
    reader.read([(0, TEXT)])
    told = reader.ahead([0], 3, [15])[0]
    reader.read([(0, [*TEXT[:3], 8, 8])])
    torch.testing.assert_close(reader.ahead([0], 3, [15])[0], told, rtol=1e-4, atol=1e-4)
    reader.read([(0, [8, *TEXT[1:]])])
    assert (reader.ahead([0], 3, [15])[0] - told).abs().max() > 0.01, "what stands before counts"


def test_there_is_a_guess_for_each_place_behind_a_token_and_what_it_should_be() -> None:
    prefix = NETWORK.prefixes[CACHE.languages]
    tokens = torch.cat((prefix, torch.tensor([TEXT] * 3)), dim=1)
    said = NETWORK.ar_logits(torch.tensor([TEXT] * 3), CACHE)
    found = guesses(NETWORK.decoder, drafter_of(NETWORK), tokens, CACHE.memory, prefix.shape[1])
    assert len(found) == DEPTH
    for depth, (told, wanted) in enumerate(found):
        assert told.shape == wanted.shape == (3, len(TEXT) - depth, wanted.shape[2])
        torch.testing.assert_close(NETWORK.decoder.unembed(wanted), said[:, depth + 1 :], rtol=1e-4, atol=1e-4)


def test_it_begins_as_a_copy_of_the_last_layers() -> None:
    network = drafting(1).network
    mine = drafter_of(network)
    mine.imitate_(network.decoder)
    theirs = network.decoder.layers[-1].state_dict()
    copied = mine.layers[0].state_dict()
    assert copied.keys() == {name for name in theirs if ".k_proj" not in name.replace("self_attn.k_proj", "")
                             and "encoder_attn.v_proj" not in name}  # fmt: skip
    assert all(torch.equal(value, theirs[name]) for name, value in copied.items())
    x = torch.randn(2, 3, mine.token.weight.shape[0])
    assert torch.equal(mine.entered(torch.zeros_like(x), x), x)


def test_it_learns_to_go_on_and_nothing_else_does(batch: Batch) -> None:  # noqa: F811
    network = drafting(1).network
    drafter_of(network).imitate_(network.decoder)
    drafter_of(network).requires_grad_(True)
    others = {name: value.clone() for name, value in network.state_dict().items() if "drafter" not in name}
    optimiser = torch.optim.AdamW(drafter_of(network).parameters(), lr=3e-3)
    told = []
    for _ in range(12):
        optimiser.zero_grad()
        found = run(network, batch, diffusion=0.0, draft=1.0, rates={"drafter": 1e-3})
        assert found.keys() == {"draft"}
        found["draft"].backward()
        optimiser.step()
        told.append(float(found["draft"].detach()))
    assert told[-1] < 0.5 * told[0], told
    assert all(torch.equal(network.state_dict()[name], value) for name, value in others.items())
    assert all(p.grad is None for name, p in network.named_parameters() if "drafter" not in name)


def test_padding_and_neighbours_are_not_learned_from(batch: Batch) -> None:  # noqa: F811
    network = drafting(1).network
    loss = run(network, batch, diffusion=0.0, draft=1.0, rates={"drafter": 1e-3})["draft"]
    tokens = batch.tokens.clone()
    for row, length in enumerate(batch.lengths.tolist()):
        tokens[row, length:] = 8
    other = run(network, replace(batch, tokens=tokens), diffusion=0.0, draft=1.0, rates={"drafter": 1e-3})["draft"]
    assert int(batch.lengths.min()) < tokens.shape[1]
    torch.testing.assert_close(loss, other)


def test_a_model_without_one_can_t_learn_it(batch: Batch) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="drafter"):
        run(random_model().network, batch, diffusion=0.0, draft=1.0, rates={"drafter": 1e-3})
    stage = Stage(name="s", steps=1, rates={"drafter": 1e-3}, diffusion=0.0, draft=1.0)
    with pytest.raises(RecipeError, match="no drafter"):
        _prepare(random_model().network, stage, seed=0)


def test_what_it_imitates_is_not_moved_where_that_learns_too(batch: Batch) -> None:  # noqa: F811
    network = drafting(1).network.requires_grad_(True)
    run(network, batch, diffusion=0.0, draft=1.0, rates={"drafter": 1e-3})["draft"].backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name for name in moved if "drafter" not in name} <= {"decoder.embed_tokens.weight"}
    assert moved


def test_it_can_t_be_larger_than_what_it_imitates() -> None:
    with pytest.raises(ModelError, match="3 layers"):
        drafting(3)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_it_is_stored_with_its_model(tmp_path: Folder, precision: str) -> None:
    model = drafting(1)
    checkpoint.save(tmp_path, model, precision=precision)  # type: ignore[arg-type]
    found = checkpoint.load(tmp_path, precision="float32")
    assert found.config == model.config
    for name, value in drafter_of(model.network).state_dict().items():
        near = {"float32": 0.0, "float16": 1e-3, "int8": 0.01}[precision] * float(value.abs().max())
        torch.testing.assert_close(drafter_of(found.network).state_dict()[name], value, rtol=0, atol=near)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="int8 is for x86")
def test_in_int8_it_says_about_the_same(tmp_path: Folder) -> None:
    model = replace(drafting(1), network=blind(drafting(1)))
    checkpoint.save(tmp_path, model, precision="int8")
    told = []
    for precision in ("float32", "int8"):
        network = checkpoint.load(tmp_path, precision=precision).network  # type: ignore[arg-type]
        reader = network.rereader(network.prefill(random_speech([60]), KNOWN[:1]))
        assert reader is not None
        assert reader.drafts
        reader.read([(0, TEXT)])
        told.append(reader.ahead([0], 2, [15, 16])[0])
    assert quantised.holds(network)
    assert float((told[0] - told[1]).abs().max()) < 0.05 * float(told[0].abs().max())


def test_without_one_nothing_is_drafted() -> None:
    plain = blind(random_model())
    reader = plain.rereader(plain.prefill(random_speech([60]), KNOWN[:1]))
    assert reader is not None
    assert not reader.drafts


def test_it_is_asked_where_there_are_few_steps_or_it_is_asked_for() -> None:
    told = [SamplingOptions(steps=steps).drafted for steps in (1, 4, 5, 8)]
    assert told == [2, 2, 0, 0]
    assert SamplingOptions(steps=8, draft=3).drafted == 3
    assert SamplingOptions(steps=1, draft=0).drafted == 0
    for wrong in (-1, 9):
        with pytest.raises(OptionError, match=f"draft must be from 0 to 8, got {wrong}"):
            SamplingOptions(draft=wrong)


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_the_embedded_model_writes_more_in_a_step_with_it(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber, asked = load("mini"), list[int]()
    plain = Rereader.ahead

    def noted(self: Rereader, rows: Sequence[int], place: int, tokens: Sequence[int]) -> Tensor:
        asked.append(len(rows))
        return plain(self, rows, place, tokens)

    monkeypatch.setattr(Rereader, "ahead", noted)
    texts = []
    for draft in (0, 2):
        options = SamplingOptions(steps=1, draft=draft, guidance=guidance)
        texts.append(
            [
                transcriber.transcribe(SAMPLES / f"{code}.opus", language=code, options=options).text
                for code in ("en", "de", "fr", "es")
            ]
        )
    assert texts[0] != texts[1]
    assert set(asked) == ({2} if guidance else {1})
