"""The decoder token by token, with CTC and without; and that joint writing on a canvas ends where that ends."""

import pytest
import torch
from conftest import MELS, VOCABULARY, WIDTH, random_model, random_speech, row_alone, tiny_tokenizer

from diffasr.comparisons import ar_texts, ctc_texts, joint_rows
from diffasr.decode import decode
from diffasr.diffusion import joint
from diffasr.diffusion.sampler import SamplingOptions
from diffasr.errors import OptionError
from diffasr.model.checkpoint import Model, build
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.text import Tokenizer

LENGTHS = [61, 24, 96, 40]
LANGUAGES = torch.tensor([0, 1, 2, 5])


def spelling_model(seed: int = 3, *, sees_right: bool = False) -> Model:
    """A random network whose CTC spells with short labels; its decoder looks to the left alone, or to both sides."""
    config = ModelConfig(
        name="tiny",
        encoder=EncoderConfig(mels=MELS, width=WIDTH, heads=2, layers=2, hidden=64),
        projector=ProjectorConfig(hidden=64, strides=2, letters=2),
        decoder=DecoderConfig(vocabulary=VOCABULARY, width=WIDTH, heads=2, layers=2, hidden=64, positions=200),
    )
    tokenizer = Tokenizer(tiny_tokenizer().backend, letters=2)
    torch.manual_seed(seed)
    network = build(config, tokenizer).eval().requires_grad_(False)
    if not sees_right:
        network.decoder.future.fill_(-100.0)
    return Model(network=network, tokenizer=tokenizer, config=config)


@pytest.mark.parametrize("seed", range(4))
def test_a_canvas_ends_where_one_token_after_another_leads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the denoiser sees the left alone, and every token is weighed."""
    monkeypatch.setattr(joint, "FEW", VOCABULARY)
    monkeypatch.setattr(joint, "GROWTH", 1000)
    model, speech = spelling_model(seed), random_speech(LENGTHS, seed)
    written = decode(model, speech, LANGUAGES, SamplingOptions(steps=250, accept="joint"))
    wanted = ar_texts(model, speech, LANGUAGES, joint_weight=SamplingOptions().joint_weight)
    for heard, one, other in zip(ctc_texts(model, speech), written, wanted, strict=True):
        assert heard and one.steps < 250
        assert one.text == other


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model, speech = spelling_model(sees_right=True), random_speech(LENGTHS)
    options = SamplingOptions(steps=4)
    together = decode(model, speech, LANGUAGES, options)
    for row, one in enumerate(together):
        (alone,) = decode(model, row_alone(speech, row), LANGUAGES[row : row + 1], options)
        assert (alone.text, alone.steps) == (one.text, one.steps)


def test_auto_is_joint_where_ctc_spells_and_prefix_elsewhere() -> None:
    speech, spells = random_speech(LENGTHS), spelling_model()
    for model, start, accept in (
        (spells, "ctc", "joint"),
        (spells, "noise", "prefix"),
        (random_model(), "ctc", "prefix"),
    ):
        auto = decode(model, speech, LANGUAGES, SamplingOptions(steps=3, start=start))
        named = decode(model, speech, LANGUAGES, SamplingOptions(steps=3, start=start, accept=accept))
        assert [d.text for d in auto] == [d.text for d in named]


def test_the_weight_of_ctc_changes_the_text() -> None:
    model, speech = spelling_model(), random_speech(LENGTHS)
    plain = decode(model, speech, LANGUAGES, SamplingOptions(steps=2))
    other = decode(model, speech, LANGUAGES, SamplingOptions(steps=2, joint_weight=5.0))
    assert [d.text for d in plain] != [d.text for d in other]


def test_joint_writing_needs_labels_and_a_text_to_start_from() -> None:
    speech = random_speech([24])
    with pytest.raises(OptionError, match="short labels"):
        decode(random_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint"))
    with pytest.raises(OptionError, match="noise"):
        decode(spelling_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint", start="noise"))
    with pytest.raises(OptionError, match="short labels"):
        ar_texts(random_model(), speech, LANGUAGES[:1], joint_weight=0.4)


def test_ctc_counts_token_by_token() -> None:
    model, speech = spelling_model(), random_speech(LENGTHS)
    assert ar_texts(model, speech, LANGUAGES, joint_weight=5.0) != ar_texts(model, speech, LANGUAGES)
    cache = model.network.prefill(speech, LANGUAGES)
    rows = joint_rows(model, cache, weight=0.4)
    assert [row.forwards.sound.slots for row in rows] == cache.slots.tolist()
