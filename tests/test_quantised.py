"""Int8 layers against float32 ones: near, exact where nothing is rounded, and blind to the rows beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MELS, VOCABULARY, random_model, random_speech, row_alone, wake
from torch import Tensor, nn
from torch.nn import functional as F

from diffasr.decode import decode
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.errors import ModelError, OptionError
from diffasr.model import quantised
from diffasr.model.checkpoint import Model, load, save
from diffasr.model.quantised import MOST, QuantisedConv, QuantisedLinear, QuantisedTable, holds, is_chosen, quantise

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not quantised.is_fast(), reason="int8 products need AVX-512 VNNI")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """One checkpoint, in float32 and in int8."""
    folder = tmp_path_factory.mktemp("int8")
    save(folder, wake(random_model(3)), precision="int8")
    return load(folder), load(folder, precision="int8")


@pytest.mark.parametrize("rows", [1, 5, 250, 300])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_layer_is_that_of_float32_within_a_hundredth(rows: int, with_bias: bool) -> None:
    weight, bias, x = random(24, 64), random(24, seed=1) if with_bias else None, random(rows, 64, seed=2)
    layer = QuantisedLinear(*quantise(weight), bias)
    assert distance(layer(x), F.linear(x, weight, bias)) < 0.02
    assert layer(x.view(rows, 1, 64)).shape == (rows, 1, 24)


@pytest.mark.parametrize("with_bias", [True, False])
def test_rows_that_are_many_give_what_they_give_in_parts(with_bias: bool) -> None:
    layer = QuantisedLinear(*quantise(random(24, 64)), random(24, seed=1) if with_bias else None)
    x = random(2 * MOST + 77, 64, seed=2)
    for sizes in ([2 * MOST + 77], [300, MOST, MOST - 223], [1, MOST, MOST + 76]):
        assert torch.equal(layer(x), torch.cat([layer(part) for part in x.split(sizes)]))
    assert torch.equal(layer(x[None, :, None])[0, :, 0], layer(x))


def test_an_mlp_of_many_places_gives_what_it_gives_in_parts(pair: tuple[Model, Model]) -> None:
    block, x = pair[1].network.encoder.layers[0], random(3, 400, 32)
    whole = block.fc2(F.gelu(block.fc1(block.final_layer_norm(x))))
    assert torch.equal(block.thought(x), whole)
    assert torch.equal(block.thought(x)[1:2], block.thought(x[1:2]))


def test_a_convolution_of_several_rows_is_that_of_each(pair: tuple[Model, Model]) -> None:
    conv, x = pair[1].network.encoder.conv2, random(3, 32, 700)
    assert torch.equal(conv(x), torch.cat([conv(row[None]) for row in x]))


def test_whole_numbers_come_out_exactly_even_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (9, 512), generator=generator).float()
    codes[:, 0] = 127.0  # so that a step of the scale is 1
    rows = torch.randint(-127, 128, (16, 512), generator=generator).to(torch.int8)
    rows[0], codes[0] = 127, 127.0  # sums that would saturate 16 bits
    layer = QuantisedLinear(rows, torch.ones(16))
    assert torch.equal(layer(codes), codes @ rows.float().T)


def test_the_loudness_of_one_row_does_not_touch_another() -> None:
    layer, x = QuantisedLinear(*quantise(random(8, 32))), random(6, 32, seed=1)
    loud = x.clone()
    loud[3] *= 1000
    assert torch.equal(layer(x)[:3], layer(loud)[:3])
    assert torch.equal(layer(x)[4:], layer(loud)[4:])
    torch.testing.assert_close(layer(loud)[3], 1000 * layer(x)[3])
    assert torch.equal(layer(torch.zeros(2, 32)), torch.zeros(2, 8))


@pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 9), (2, 10), (2, 1)])
def test_a_convolution_is_torchs_own(stride: int, size: int) -> None:
    weight, bias, x = random(10, 6, 3), random(10, seed=1), random(2, 6, size, seed=2)
    exact = F.conv1d(x, weight, bias, stride=stride, padding=1)
    ours = QuantisedConv(*quantise(weight), bias, stride=stride)(x)
    assert ours.shape == exact.shape
    assert distance(ours, exact) < 0.03


def test_a_table_gives_rows_scores_and_means() -> None:
    weight, hidden = random(100, 16), random(3, 5, 16, seed=1)
    table = QuantisedTable(*quantise(weight))
    ids = torch.tensor([[3, 99], [0, 3]])
    torch.testing.assert_close(table(ids), weight[ids], atol=0.02, rtol=0.02)
    assert distance(table.scores(hidden), hidden @ weight.T) < 0.02
    for labels in (torch.tensor([5, 1, 70]), torch.tensor([2, 2])):
        assert torch.equal(table.scores(hidden, labels), table.scores(hidden)[..., labels])
    logits = 6.0 * random(3, 5, 100, seed=2)  # most of the weight is on few tokens
    assert distance(table.mean(logits), logits.softmax(-1) @ weight) < 0.05


def test_loading_puts_int8_everywhere_but_where_features_come_in(pair: tuple[Model, Model]) -> None:
    network = pair[1].network
    left = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    assert left == ["encoder.conv1"]
    assert holds(network)
    assert not holds(pair[0].network)


def test_a_network_in_int8_is_near_the_one_in_float32(pair: tuple[Model, Model]) -> None:
    mel, lengths = random(2, MELS, 80), torch.tensor([80, 61])
    canvas = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    more: dict[str, Any] = {
        "lengths": torch.tensor([12, 7]),
        "hints": torch.arange(12).clamp_max(4).repeat(2, 1),
        "previous": 5.0 * random(2, 12, VOCABULARY),
    }
    seen = []
    for model in pair:
        speech = model.network.hear(mel, lengths)
        cache = model.network.prefill(speech, torch.tensor([0, 1]))
        read = model.network.ar_reader(cache)
        seen.append([speech.frames, cache.audio, cache.ctc, cache.language_logits,
                     model.network.denoise(canvas, cache, **more),
                     model.network.ar_logits(canvas, cache), read(canvas[:, :0]), read(canvas[:, :3])])  # fmt: skip
    for exact, ours in zip(*seen, strict=True):
        assert ours.shape == exact.shape
        assert distance(ours, exact) < 0.06


def test_zero_conditioning_is_left_out_and_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, random_model(3))  # untrained: its conditioning is zero
    speech, canvas = random_speech([40]), torch.arange(10)[None]
    results = []
    network = load(tmp_path, precision="int8").network
    assert network.decoder.conditioning.is_silent
    for is_silent in (True, False):
        network.decoder.conditioning.is_silent = is_silent
        cache = network.prefill(speech, torch.tensor([2]))
        results.append(network.denoise(canvas, cache, lengths=torch.tensor([10]), hints=canvas.clamp_max(5)))
    assert torch.equal(*results)


def test_awake_conditioning_is_not_left_out(pair: tuple[Model, Model]) -> None:
    assert not pair[1].network.decoder.conditioning.is_silent


@pytest.mark.parametrize("options", [SamplingOptions(steps=3), SamplingOptions(steps=3, accept="all")])
def test_neighbours_of_other_lengths_do_not_change_a_text(pair: tuple[Model, Model], options: SamplingOptions) -> None:
    speech, languages = random_speech([60, 24, 41]), torch.tensor([0, 1, 3])
    together = decode(pair[1], speech, languages, options)
    for row in range(3):
        alone = decode(pair[1], row_alone(speech, row), languages[row : row + 1], options)[0]
        assert alone.text == together[row].text
        assert alone.avg_logprob == together[row].avg_logprob, "to the last bit"
        assert alone.token_logprobs == together[row].token_logprobs


def test_it_can_not_be_saved(pair: tuple[Model, Model], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="load it with precision='full'"):
        save(tmp_path, pair[1])


def test_a_missing_weight_is_told_as_ever(tmp_path: Path) -> None:
    model = random_model()
    model.network.encoder.layers[0].self_attn.k_proj = nn.Linear(32, 31, bias=False)
    save(tmp_path, model)
    with pytest.raises(ModelError, match=r"encoder.layers.0.self_attn.k_proj.weight is \(31, 32\), not \(32, 32\)"):
        load(tmp_path, precision="int8")


def test_who_gets_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_chosen(p, CPU) for p in ("auto", "full", "float32", "bfloat16", "int8")] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert not is_chosen("auto", torch.device("meta"))
    with pytest.raises(OptionError, match="int8 of a whisper backbone needs an x86 CPU, not meta: try auto"):
        is_chosen("int8", torch.device("meta"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not is_chosen("auto", CPU)
