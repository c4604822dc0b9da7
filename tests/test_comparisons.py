"""The decoder token by token, with CTC and without; and that joint writing on a canvas ends where that ends."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MELS, VOCABULARY, WIDTH, random_model, random_speech, row_alone, tiny_tokenizer

from diffasr import whole
from diffasr.ballots import ballot_paths
from diffasr.comparisons import ar_texts, beam_texts, ctc_texts, joint_rows
from diffasr.decodable import decodable
from diffasr.decode import decode
from diffasr.diffusion import joint
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.model.checkpoint import build
from diffasr.model.config import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from diffasr.model.loaded import Model
from diffasr.text import Tokenizer
from diffasr.torched import Prefilled
from diffasr.train.letters import build as build_letters

LENGTHS = [61, 24, 96, 40]
LANGUAGES = [0, 1, 2, 5]
CODES = ["en", "de", "fr", "zh"]
"""Of the four."""
READS = build_letters({code: ["the cat sat", f"a {code} thing", "them and they"] for code in CODES}, order=4, least=1)


def spelling_model(seed: int = 3, *, sees_right: bool = False, sharpness: float = 1.0) -> Model:
    """A random network whose CTC spells with short labels; its decoder looks to the left alone, or to both sides.

    sharpness: below 1, the denoiser is less sure, so that CTC is asked."""
    config = ModelConfig(
        name="tiny",
        encoder=EncoderConfig(mels=MELS, width=WIDTH, heads=2, layers=2, hidden=64),
        projector=ProjectorConfig(hidden=64, strides=2, letters=2),
        decoder=DecoderConfig(vocabulary=VOCABULARY, width=WIDTH, heads=2, layers=2, hidden=64, positions=200),
    )
    tokenizer = Tokenizer(tiny_tokenizer().backend, letters=2)
    torch.manual_seed(seed)
    network = build(config, tokenizer).eval().requires_grad_(False)
    network.decoder.layer_norm.weight.mul_(sharpness)
    if not sees_right:
        network.decoder.future.fill_(-100.0)
    return Model(network=network, tokenizer=tokenizer, config=config)


def reading_model(seed: int = 3, *, sees_right: bool = False, sharpness: float = 1.0) -> Model:
    """The same, with a model of letters."""
    return replace(spelling_model(seed, sees_right=sees_right, sharpness=sharpness), letters=READS)


@pytest.fixture
def all_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is weighed, and a text may grow as it likes."""
    monkeypatch.setattr(whole, "FEW", VOCABULARY)
    monkeypatch.setattr(joint, "FAR", math.inf)
    monkeypatch.setattr(joint, "GROWTH", 1000)


@pytest.mark.usefixtures("all_weighed")
@pytest.mark.parametrize(("seed", "made"), [(0, spelling_model), (1, spelling_model), (2, reading_model)])
def test_a_canvas_ends_where_one_token_after_another_leads(seed: int, made: Callable[[int], Model]) -> None:
    """Where the denoiser sees the left alone, and every token is weighed."""
    model, speech = made(seed), random_speech(LENGTHS, seed)
    written = decode(model, speech, LANGUAGES, SamplingOptions(steps=250, accept="joint"))
    wanted = ar_texts(model, speech, LANGUAGES, together=SamplingOptions())
    for heard, one, other in zip(ctc_texts(model, speech), written, wanted, strict=True):
        assert heard and one.steps < 250
        assert one.text == other


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model, speech = spelling_model(sees_right=True), random_speech(LENGTHS)
    options = SamplingOptions(steps=4)
    found = decode(model, speech, LANGUAGES, options)
    for row, one in enumerate(found):
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


def test_a_window_with_several_votes_is_shown_once() -> None:
    shown: list[tuple[int, int, list[int]]] = []
    decode(spelling_model(), random_speech(LENGTHS), LANGUAGES, SamplingOptions(steps=1, votes=3),
           lambda draft, rows: shown.append((draft.step, len(draft.tokens), rows)))  # fmt: skip
    assert shown[0] == (1, 4, [0, 1, 2, 3])


def test_the_weight_of_ctc_changes_the_text() -> None:
    model, speech = spelling_model(sharpness=0.1), random_speech(LENGTHS)
    plain = decode(model, speech, LANGUAGES, SamplingOptions(steps=2))
    other = decode(model, speech, LANGUAGES, SamplingOptions(steps=2, joint_weight=5.0))
    assert [d.text for d in plain] != [d.text for d in other]


CHANGES = {
    "beam": (0, 12),
    "letter_weight": (0.0, 0.3, 3.0),
    "letter_bonus": (0.0, 1.2, 5.0),
    "caution": (0.0, 50.0),
}


def texts(model: Model, **options: Any) -> list[str]:
    return [d.text for d in decode(model, random_speech(LENGTHS), LANGUAGES, SamplingOptions(steps=2, **options))]


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_of_the_letters_changes_the_text(name: str) -> None:
    model = reading_model(sharpness=0.1)
    found = [texts(model, **{name: value}) for value in CHANGES[name]]
    assert all(one != other for n, one in enumerate(found) for other in found[:n])


def test_without_a_model_of_letters_its_options_change_nothing() -> None:
    model = spelling_model(sharpness=0.1)
    assert texts(model, beam=0, letter_weight=3.0, letter_bonus=5.0) == texts(model)
    beamed = beam_texts(model, random_speech(LENGTHS), LANGUAGES, SamplingOptions())
    assert beamed == ctc_texts(model, random_speech(LENGTHS))


def test_a_canvas_starts_from_the_beam_but_not_where_it_starts_from_a_sample() -> None:
    model, speech = reading_model(), random_speech(LENGTHS)

    def starts(**options: Any) -> list[str]:
        return beam_texts(model, speech, LANGUAGES, SamplingOptions(**options))

    assert starts(beam=0) == ctc_texts(model, speech) != starts()
    assert starts(beam=1) != starts(beam=0) != starts(beam=12) != starts(beam=1)
    assert starts(start="sample", beam=0) == starts(start="sample") != starts()


@pytest.mark.parametrize(("name", "usual", "other"), [("caution", 0.0, 50.0), ("joint_weight", 0.43, 5.0)])
def test_an_option_is_what_the_checkpoint_says_of_a_language_unless_it_is_asked_for(
    name: str, usual: float, other: float
) -> None:
    model = spelling_model(sharpness=0.1)
    special = replace(model, config=replace(model.config, decoding={"de": {name: other}}))
    plain, changed, found = texts(model, **{name: usual}), texts(model, **{name: other}), texts(special)
    assert found == [plain[0], changed[1], plain[2], plain[3]]
    assert plain[1] != changed[1]
    assert texts(special, **{name: usual}) == plain == texts(model)


def test_joint_writing_needs_labels_and_a_text_to_start_from() -> None:
    speech = random_speech([24])
    with pytest.raises(OptionError, match="short labels"):
        decode(random_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint"))
    with pytest.raises(OptionError, match="noise"):
        decode(spelling_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint", start="noise"))
    with pytest.raises(OptionError, match="tiny is read in whole canvases here: ahead=2 can only be 0"):
        decode(spelling_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint", ahead=2))
    decode(spelling_model(), speech, LANGUAGES[:1], SamplingOptions(accept="joint", ahead=0))
    with pytest.raises(OptionError, match="short labels"):
        ar_texts(random_model(), speech, LANGUAGES[:1], together=SamplingOptions())


def test_ctc_counts_token_by_token() -> None:
    model, speech = spelling_model(sharpness=0.1), random_speech(LENGTHS)
    loud = SamplingOptions(joint_weight=5.0)
    assert ar_texts(model, speech, LANGUAGES, together=loud) != ar_texts(model, speech, LANGUAGES)
    cache = decodable(model.network).prefill(speech, LANGUAGES)
    rows = joint_rows(model, cache, loud)
    assert [row.forwards.sound.slots for row in rows] == cache.cache.slots.tolist()


def test_where_ctc_hears_nothing_the_beam_is_not_asked() -> None:
    """A bonus for each letter would make a word of noise."""
    model, speech = reading_model(), random_speech(LENGTHS)
    cache = decodable(model.network).prefill(speech, LANGUAGES)
    logits = torch.zeros_like(cache.cache.ctc)
    logits[:, :, model.tokenizer.blank] = 0.5
    silent = Prefilled(replace(cache.cache, ctc=logits))
    wanted = SamplingOptions(letter_bonus=50.0)
    assert [path.tokens for path in ballot_paths(model, silent, wanted)] == [[]] * len(LENGTHS)
    logits[0, 1, model.tokenizer.blank] = -1.0
    assert ballot_paths(model, silent, wanted)[0].tokens
