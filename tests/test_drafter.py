"""What the drafter learned at each place is what decoding asks of it. It follows the decoder, and can learn to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as Folder

import pytest
import torch
from conftest import VOCABULARY, blind, random_model, random_speech
from test_step_causal import batch, run  # noqa: F401  (a fixture)
from torch import Tensor

from diffasr import loading
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import ModelError, OptionError, RecipeError
from diffasr.model import checkpoint
from diffasr.model.drafter import DEPTH, Drafter, guesses
from diffasr.model.loaded import Model
from diffasr.model.whisper import WhisperNetwork
from diffasr.places import Place
from diffasr.runtime.network import RuntimeNetwork
from diffasr.runtime.reader import Reader
from diffasr.torched import Prefilled, Torched
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


NETWORK, KNOWN = blind(drafting(2)), [0, 3, 5]
CACHE = NETWORK.prefill(random_speech([60, 31, 44]), torch.tensor(KNOWN))


def without_torch(folder: Folder, network: WhisperNetwork, layers: int, precision: str = "float32") -> RuntimeNetwork:
    checkpoint.save(folder, replace(drafting(layers), network=network), precision=precision)  # type: ignore[arg-type]
    found = loading.load(folder, threads=1).network
    assert isinstance(found, RuntimeNetwork)
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> RuntimeNetwork:
    """The same as NETWORK."""
    return without_torch(tmp_path_factory.mktemp("drafter"), NETWORK, 2)


def reader_of(network: RuntimeNetwork, guidance: float = 0.0) -> Reader:
    frames = random_speech([60, 31, 44]).frames.numpy()
    cache = network.prefill(network.heard([frames[0], frames[1, :31], frames[2, :44]]), KNOWN)
    return network.reader(cache, (), [guidance] * 3, end=network.end)


def spread(place: Place) -> Tensor:
    """(V,) log-probabilities."""
    return torch.tensor([place.of(token) for token in range(VOCABULARY)])


def learned(text: list[int], row: int, *, is_deaf: bool = False) -> list[Tensor]:
    """Logits of the guesses at every place of a text, as training makes them: for each depth (U - n, V)."""
    cache = NETWORK.without_audio(CACHE, torch.tensor([True] * 3)) if is_deaf else CACHE
    alone = NETWORK.select(cache, torch.tensor([row]))
    prefix = NETWORK.prefixes[alone.languages]
    tokens = torch.cat((prefix, torch.tensor([text])), dim=1)
    found = guesses(NETWORK.decoder, drafter_of(NETWORK), tokens, alone.memory, prefix.shape[1])
    return [NETWORK.decoder.unembed(told)[0] for told, _ in found]


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_decoding_asks_what_training_taught(network: RuntimeNetwork, row: int, guidance: float) -> None:
    reader = reader_of(network, guidance)
    reader.read([(0, [8, 8]), (1, [15]), (2, [])])
    reader.read([(row, TEXT)])
    heard, unheard = learned(TEXT, row), learned(TEXT, row, is_deaf=True)
    for depth, (sound, silence) in enumerate(zip(heard, unheard, strict=True)):
        wanted = ((1 + guidance) * sound - guidance * silence).log_softmax(-1)
        for place in range(len(TEXT) - depth):
            told = reader.ahead(row, place, TEXT[place : place + depth + 1])
            torch.testing.assert_close(spread(told), wanted[place], rtol=1e-4, atol=1e-4)
            assert told.tokens[0] == wanted[place].argmax()


def test_what_is_asked_does_not_depend_on_what_was_asked_before(network: RuntimeNetwork) -> None:
    def told(*questions: tuple[int, int, list[int]]) -> list[Tensor]:
        reader = reader_of(network)
        reader.read([(0, TEXT), (1, TEXT)])
        return [spread(reader.ahead(*question)) for question in questions]

    last = (0, 2, [15, 16])
    for before in ([(0, 2, [15])], [(0, 2, [15]), (0, 2, [15, 17])], [(0, 1, [15])], [(0, 2, [16])], [last],
                   [(1, 2, [15])], [(0, 2, [15]), (1, 2, [17])], [(0, 2, [15, 16, 17])]):  # fmt: skip
        assert torch.equal(told(*before, last)[-1], told(last)[-1])


def test_new_tokens_stand_behind_the_text_up_to_their_place_and_not_behind_its_own(network: RuntimeNetwork) -> None:
    reader = reader_of(network)
    reader.read([(0, TEXT)])
    told = spread(reader.ahead(0, 3, [15]))
    reader.read([(0, [*TEXT[:3], 8, 8])])
    torch.testing.assert_close(spread(reader.ahead(0, 3, [15])), told, rtol=1e-4, atol=1e-4)
    reader.read([(0, [8, *TEXT[1:]])])
    assert (spread(reader.ahead(0, 3, [15])) - told).abs().max() > 0.01, "what stands before counts"


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


def test_in_int8_it_says_about_the_same(network: RuntimeNetwork, tmp_path: Folder) -> None:
    told = []
    for one in (network, without_torch(tmp_path, NETWORK, 2, "int8")):
        reader = reader_of(one)
        assert reader.drafts
        reader.read([(0, TEXT)])
        told.append(spread(reader.ahead(0, 2, [15, 16])))
    assert 0 < float((told[0] - told[1]).abs().max()) < 0.05 * float(told[0].abs().max())


def test_without_one_nothing_is_drafted(tmp_path: Folder) -> None:
    assert not reader_of(without_torch(tmp_path, blind(random_model()), 0)).drafts


def test_who_reads_canvases_as_a_whole_drafts_nothing() -> None:
    reader = Torched(NETWORK).reader(Prefilled(CACHE), [8] * 3, [0.0] * 3, end=0)
    assert not reader.drafts
    with pytest.raises(OptionError, match="without a drafter: set draft to 0"):
        reader.ahead(0, 2, [15])


def test_it_is_asked_where_there_are_few_steps_or_it_is_asked_for() -> None:
    told = [SamplingOptions(steps=steps).drafted for steps in (1, 8, 9, 16)]
    assert told == [2, 2, 0, 0]
    assert SamplingOptions(steps=8, draft=3).drafted == 3
    assert SamplingOptions(steps=1, draft=0).drafted == 0
    for wrong in (-1, 9):
        with pytest.raises(OptionError, match=f"draft must be from 0 to 8, got {wrong}"):
            SamplingOptions(draft=wrong)


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_the_embedded_model_writes_more_in_a_step_with_it(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber, asked, plain = load("mini"), list[int](), Reader.ahead

    def noted(self: Reader, number: int, place: int, tokens: Sequence[int]) -> Place:
        asked.append(draft)
        return plain(self, number, place, tokens)

    monkeypatch.setattr(Reader, "ahead", noted)
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
    assert set(asked) == {2}
