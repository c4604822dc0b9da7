"""A network that is run without torch says what torch's says, and of each clip and text what it says of it alone."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MELS, VOCABULARY, blind, random_model, random_speech, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from diffasr.decodable import decodable
from diffasr.decode import Decoded, Guide, decode
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import ModelError, OptionError
from diffasr.loading import load
from diffasr.model import checkpoint
from diffasr.model.config import SURE, ProjectorConfig
from diffasr.model.loaded import Model
from diffasr.model.whisper import WhisperNetwork
from diffasr.places import Place, unread
from diffasr.runtime.network import RuntimeNetwork, Speech
from diffasr.runtime.reader import AT_ONCE, Decoder, Row
from diffasr.text import Tokenizer

ROOT = Path(__file__).parent.parent
PROJECTOR = ProjectorConfig(hidden=48, strides=1, steady=1, layers=2, letters=2)
LENGTHS, KNOWN = [60, 31, 44], [0, 3, 5]
END = tiny_tokenizer().end
texts = st.lists(st.integers(8, 20), max_size=AT_ONCE + 3)
Pair, Caches = tuple[Model, Model], tuple[Any, Any]


def seeing(projector: ProjectorConfig = PROJECTOR) -> Model:
    """A model of every part there is, with no weight left as it began, which sees later places."""
    plain = random_model()
    config = replace(plain.config, projector=projector)
    tokenizer = Tokenizer(plain.tokenizer.backend, letters=projector.letters)
    torch.manual_seed(3)
    network = checkpoint.build(config, tokenizer).eval().requires_grad_(False)
    for name, value in network.named_parameters():
        if "norm" in name or name == "habits":
            value.add_(0.2 * torch.randn(value.shape))
    return Model(network=network, tokenizer=tokenizer, config=config)


def unseeing(projector: ProjectorConfig = PROJECTOR) -> Model:
    """The same, blind to later places."""
    model = seeing(projector)
    return replace(model, network=blind(model))


def both(folder: Path, model: Model, precision: Any) -> Pair:
    """By torch in float32, and without."""
    checkpoint.save(folder, model, precision=precision)
    return checkpoint.load(folder, precision="float32"), load(folder, threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of one checkpoint that is stored in float32."""
    return both(tmp_path_factory.mktemp("float32"), unseeing(), "float32")


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is stored in int8."""
    folder = tmp_path_factory.mktemp("int8")
    checkpoint.save(folder, unseeing(), precision="int8")
    return folder


def view(model: Model) -> Any:
    """Its network as decoding wants it."""
    return decodable(model.network)


def features(*sizes: int) -> list[NDArray[np.float32]]:
    dice = np.random.default_rng(0)
    return [dice.normal(size=(MELS, size)).astype(np.float32) for size in sizes]


def heard(model: Model, lengths: Sequence[int] = LENGTHS) -> Any:
    """Random frames, as a network holds them."""
    rows = random_speech(list(lengths)).frames.numpy()
    return view(model).heard([row[:size] for row, size in zip(rows, lengths, strict=True)])


def caches(pair: Pair, languages: list[int] | None = KNOWN) -> Caches:
    theirs, ours = (view(model).prefill(heard(model), languages) for model in pair)
    return theirs, ours


@pytest.fixture(scope="module")
def prefilled(pair: Pair) -> Caches:
    """Caches, which nothing changes."""
    return caches(pair)


def whole(network: WhisperNetwork, cache: Any, text: Sequence[int], row: int) -> Tensor:
    """Causal logits (U + 1, V) of one text, by torch."""
    alone = network.select(cache.cache, torch.tensor([row]))
    return network.ar_logits(torch.tensor([text], dtype=torch.long), alone)[0]


def near(ours: Any, exact: Any, least: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(exact), rtol=least, atol=least)


def said(places: Sequence[Place], logits: Tensor) -> None:
    """What is said of each place is what its logits (n, V) say: of every token, and which are the likeliest."""
    exact = logits.log_softmax(-1)
    assert len(places) == len(exact)
    for place, row in zip(places, exact, strict=True):
        near([place.of(token) for token in range(VOCABULARY)], row)
        near(place.log_probabilities, row.topk(len(place.tokens)).values)
        near(row[list(place.tokens)], place.log_probabilities)


def distance(ours: Any, exact: Any) -> float:
    ours, exact = torch.as_tensor(ours), torch.as_tensor(exact)
    assert ours.shape == exact.shape
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("sizes", [[80], [61, 80, 7], [1, 2]])
def test_the_ear_hears_what_torchs_hears(pair: Pair, sizes: list[int]) -> None:
    theirs, ours = (view(model).listen(features(*sizes)) for model in pair)
    assert len(ours) == len(sizes)
    for row, frames in enumerate(ours.frames):
        assert len(frames) == -(-sizes[row] // 2) == theirs.lengths[row]
        near(frames, theirs.frames[row, : len(frames)])


def test_of_what_is_heard_the_real_frames_are_kept(pair: Pair) -> None:
    theirs, ours = (view(model).listen(features(80, 80), [11, 40]) for model in pair)
    assert [len(frames) for frames in ours.frames] == [11, 40]
    assert all(distance(f, theirs.frames[row, : len(f)]) < 1e-4 for row, f in enumerate(ours.frames))


@pytest.mark.parametrize("changes", [{}, {"strides": 2, "steady": 0}, {"layers": 0, "norms": ()}, {"letters": 0}])
def test_ctc_labels_what_torchs_labels(tmp_path: Path, changes: dict[str, Any]) -> None:
    pair = both(tmp_path, unseeing(replace(PROJECTOR, **changes)), "float32")
    theirs, ours = (view(model).ctc_rows(heard(model, [60, 1, 43])) for model in pair)
    for mine, exact in zip(ours, theirs, strict=True):
        assert mine.shape == exact.shape == (len(exact), len(pair[1].tokenizer.alphabet))
        near(mine, exact)
    told, cache = caches(pair)
    assert all(distance(cache.labels(row), told.labels(row)) < 1e-4 for row in range(3))


@pytest.mark.parametrize("languages", [None, [-1, -1, 4], KNOWN])
def test_the_language_is_found_as_by_torch_or_is_the_one_that_was_told(pair: Pair, languages: list[int] | None) -> None:
    theirs, ours = caches(pair, languages)
    near(ours.language_logits, theirs.language_logits)
    assert ours.languages.tolist() == theirs.languages.tolist()
    for row, told in enumerate(languages or []):
        if told >= 0:
            assert ours.language_logits[row].tolist() == [-SURE * (n != told) for n in range(6)]


@settings(max_examples=20)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_every_place_is_said_what_reading_the_whole_text_says(
    pair: Pair, prefilled: Caches, rounds: list[tuple[list[int], ...]]
) -> None:
    theirs, cache = prefilled
    reader = pair[1].network.reader(cache, (), [0.0] * 3, end=END)
    for written in rounds:
        for row, places in enumerate(reader.read(list(enumerate(written)))):
            said(places, whole(pair[0].network, theirs, written[row], row))


def test_only_what_changed_is_read_again(pair: Pair, prefilled: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, read, plain = pair[1].network.decoder, list[list[int]](), Decoder.embedded

    def noted(self: Decoder, tokens: Sequence[int]) -> Any:
        read.append(list(tokens))
        return plain(self, tokens)

    monkeypatch.setattr(Decoder, "embedded", noted)
    row = Row(prefilled[1].speech[0])
    for text, known, new in [
        ([9, 10, 11], 0, [[9, 10, 11]]), ([9, 10, 12, 13], 2, [[12, 13]]), ([9, 10], 2, []), ([9, 10, 12], 2, [[12]]),
        ([9, 10, 12], 3, []), ([8], 0, [[8]]),
    ]:  # fmt: skip
        assert decoder.read(row, text) == known
        assert read == new
        assert len(row.hidden) == len(text) == len(row.past["past.k.0"])
        read.clear()


@pytest.mark.parametrize("size", [AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 5])
def test_a_long_text_is_said_all_of_its_places(pair: Pair, prefilled: Caches, size: int) -> None:
    theirs, cache = prefilled
    text = torch.randint(8, 20, (size,), generator=torch.Generator().manual_seed(0)).tolist()
    (places,) = pair[1].network.reader(cache, (), [0.0] * 3, end=END).read([(1, text)])
    said(places, whole(pair[0].network, theirs, text, 1))


def test_of_a_text_whose_end_was_asked_for_alone_all_places_are_said(pair: Pair, prefilled: Caches) -> None:
    reader = pair[1].network.reader(prefilled[1], (), [0.0] * 3, end=END)
    reader.next(0, [9, 10])
    (places,) = reader.read([(0, [9, 10, 11])])
    said(places, whole(pair[0].network, prefilled[0], [9, 10, 11], 0))


def test_what_is_said_of_a_row_does_not_depend_on_its_neighbours(pair: Pair, prefilled: Caches) -> None:
    network, cache = pair[1].network, prefilled[1]
    readers = [network.reader(cache, (), [0.0] * 3, end=END) for _ in range(2)]
    for step in ([9, 10, 11], [9, 12, 11, 14]):
        (alone,) = readers[0].read([(1, step)])
        among = readers[1].read([(0, [8] * len(step)), (1, step), (2, [13, 9, 9, 10, 17])])[1]
        assert [p.log_probabilities for p in alone] == [p.log_probabilities for p in among], "to the last bit"


def test_with_guidance_what_is_said_is_pushed_away_from_what_silence_says(pair: Pair, prefilled: Caches) -> None:
    theirs, cache = prefilled
    deaf = view(pair[0]).without_audio(theirs, torch.tensor([True] * 3))
    weights = [0.7, 0.0, 0.3]
    reader = pair[1].network.reader(cache, (), weights, end=END)
    for written in ([[9, 10, 11], [], [12, 13]], [[9, 10, 12, 13], [8], [12, 13]]):
        for row, places in enumerate(reader.read(list(enumerate(written)))):
            sound, silence = (whole(pair[0].network, told, written[row], row) for told in (theirs, deaf))
            assert (sound - silence).abs().max() > 0.1
            said(places, (1 + weights[row]) * sound - weights[row] * silence)


@pytest.mark.parametrize("context", [[], [15, 16, 17], list(range(8, 20)) * 20])
def test_texts_go_on_from_a_context_and_rows_may_share_what_they_hear(
    pair: Pair, prefilled: Caches, context: list[int]
) -> None:
    chosen, canvas = [2, 0, 0, 1], torch.tensor([[9, 10, END, END]]).repeat(4, 1)
    theirs, ours = (
        view(model).remember(view(model).select(cache, chosen), context)
        for model, cache in zip(pair, prefilled, strict=True)
    )
    assert len(ours) == 4
    assert ours.languages.tolist() == [KNOWN[row] for row in chosen]
    told = pair[1].network.reader(ours, (), [0.0] * 4, end=END).read([(row, [9, 10]) for row in range(4)])
    denoised = view(pair[0]).denoise(canvas, theirs, lengths=torch.full((4,), 4))
    for row, places in enumerate(told):
        said(places, denoised[row, :3])


def test_a_canvas_is_denoised_as_by_torch(pair: Pair, prefilled: Caches) -> None:
    lengths, dice = torch.tensor([20, 5, 1]), torch.Generator().manual_seed(0)
    canvas = torch.randint(VOCABULARY, (3, 20), generator=dice)
    told = {"previous": torch.randn(3, 20, VOCABULARY, generator=dice), "hints": canvas % 9 - 1}
    for more in ({}, told):
        theirs, ours = (
            view(model).denoise(canvas, view(model).remember(cache, [15, 16]), lengths=lengths, **more)
            for model, cache in zip(pair, prefilled, strict=True)
        )
        assert ours.shape == theirs.shape
        for row, size in enumerate(lengths.tolist()):
            near(ours[row, :size], theirs[row, :size])


def test_rows_without_sound_are_read_as_by_torch(pair: Pair, prefilled: Caches) -> None:
    canvas, lengths, deaf = torch.arange(8, 17).repeat(3, 1), torch.tensor([9] * 3), torch.tensor([True, False, True])
    theirs, ours = (
        view(model).denoise(canvas, view(model).without_audio(cache, deaf), lengths=lengths)
        for model, cache in zip(pair, prefilled, strict=True)
    )
    near(ours, theirs)


def test_token_by_token_it_says_what_it_says_of_the_whole_and_what_torch_says(pair: Pair, prefilled: Caches) -> None:
    told, cache = prefilled
    theirs, ours = view(pair[0]).ar_reader(told), pair[1].network.ar_reader(cache)
    text = [[9, 10, 11, 12], [8, 13, 9, 8], [14, 14, 15, 20]]
    for size in range(5):
        begun = [row[:size] for row in text]
        reader = pair[1].network.reader(cache, (), [0.0] * 3, end=END)
        wholes = reader.read(list(enumerate(begun)))
        for place, exact, one in zip(ours(begun), theirs(begun), wholes, strict=True):
            every = [[p.of(token) for token in range(VOCABULARY)] for p in (place, exact, one[-1])]
            near(every[0], every[1])
            near(every[0], every[2])


def test_behind_the_end_nothing_is_read(pair: Pair, prefilled: Caches) -> None:
    read = pair[1].network.ar_reader(prefilled[1])
    read([[], [], []])
    read([[9], [END], [10]])
    places = read([[9, 8], [END, END], [10, END]])
    for row, is_over in enumerate([False, True, True]):
        assert (places[row].of(END) == 0.0 and places[row].of(9) == unread(END).of(9)) == is_over


@pytest.mark.parametrize(("precision", "least"), [("float16", 0.005), ("int8", 0.06)])
def test_what_is_stored_coarsely_is_near_what_float32_says(tmp_path: Path, precision: str, least: float) -> None:
    model = unseeing()
    ours = both(tmp_path, model, precision)[1]
    lengths, canvas = torch.tensor([12, 7, 9]), torch.randint(VOCABULARY, (3, 12), generator=torch.Generator())
    theirs, cache = caches((model, ours), None)
    sound, frames = (view(m).listen(features(80, 61)) for m in (model, ours))
    for row, mine in enumerate(frames.frames):
        assert distance(mine, sound.frames[row, : len(mine)]) < least
    assert all(distance(cache.labels(row), theirs.labels(row)) < least for row in range(3))
    assert distance(cache.language_logits, theirs.language_logits) < least
    told, exact = (
        view(m).denoise(canvas, view(m).select(c, [0, 1, 2]), lengths=lengths)
        for m, c in zip((ours, model), (replace(cache, languages=theirs.languages), theirs), strict=True)
    )
    assert all(distance(told[row, :size], exact[row, :size]) < least for row, size in enumerate(lengths.tolist()))


def told(text: Decoded) -> tuple[Any, ...]:
    return text.text, text.avg_logprob, text.token_logprobs, text.tokens, text.language_probability


@pytest.mark.parametrize(
    "given",
    [{}, {"guidance": 0.5}, {"steps": 4, "ahead": 2}, {"accept": "prefix"}, {"steps": 2, "votes": 2}], ids=str,
)  # fmt: skip
def test_neighbours_do_not_change_a_text(coarse: Path, given: dict[str, Any]) -> None:
    model, lengths, languages, guide = load(coarse, threads=1), [160, 24, 41], [0, -1, 3], Guide(context="the cat")
    options = SamplingOptions(**{"steps": 3} | given)
    together = decode(model, heard(model, lengths), languages, options, guide=guide)
    assert any(text.tokens for text in together)
    for row, frames in enumerate(heard(model, lengths).frames):
        (alone,) = decode(model, Speech([frames]), languages[row : row + 1], options, guide=guide)
        assert told(alone) == told(together[row]), "to the last bit"


def test_a_text_does_not_depend_on_threads(coarse: Path) -> None:
    models = [load(coarse, threads=threads) for threads in (1, 2)]
    one, two = (decode(model, heard(model, [160, 24]), [0, 1], SamplingOptions(steps=3)) for model in models)
    assert [d.text for d in one] == [d.text for d in two]


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_a_blind_whisper_is_run_without_torch_on_a_cpu_and_by_torch_where_that_is_asked_for(
    tmp_path: Path, stored: Any
) -> None:
    checkpoint.save(tmp_path, unseeing(), precision=stored)
    assert isinstance(load(tmp_path).network, RuntimeNetwork)
    for asked in ("full", "float32", "bfloat16"):
        assert isinstance(load(tmp_path, precision=asked).network, WhisperNetwork)
    if stored == "int8":
        assert isinstance(load(tmp_path, precision="int8").network, RuntimeNetwork)
        return
    with pytest.raises(OptionError, match="tiny can't be run in int8, its file is not in int8: export it"):
        load(tmp_path, precision="int8")


def whole_ear() -> Model:
    model = unseeing()
    return replace(model, config=replace(model.config, encoder=replace(model.config.encoder, mode="whole")))


def telling(part: str) -> Model:
    """One that tells each place more than the text."""
    model = unseeing()
    getattr(model.network.decoder.conditioning, part).weight.data[0, 0] = 1.0
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [(seeing, "see later ones"), (whole_ear, "hears 30 s at once")]
    + [(partial(telling, part), "see later ones") for part in ("own", "belief", "hint")],
)
def test_what_can_t_be_run_without_torch_is_run_by_it(tmp_path: Path, make: Callable[[], Model], why: str) -> None:
    checkpoint.save(tmp_path, make(), precision="int8")
    assert isinstance(load(tmp_path).network, WhisperNetwork)
    with pytest.raises(OptionError, match=f"tiny can't be run in int8, .*{why}; or leave precision at auto"):
        load(tmp_path, precision="int8")


def test_what_runs_without_torch_is_no_module_and_can_t_be_saved(pair: Pair, tmp_path: Path) -> None:
    remedy = "tiny was loaded to run without torch: load it with precision='full'"
    with pytest.raises(ModelError, match=remedy):
        _ = pair[1].module
    with pytest.raises(ModelError, match=remedy):
        checkpoint.save(tmp_path / "new", pair[1])
    assert not (tmp_path / "new").exists()
    assert pair[0].module is pair[0].network


def test_the_embedded_model_transcribes_without_torch() -> None:
    code = (
        "import sys, diffasr\n"
        "found = diffasr.load('mini').transcribe('samples/en.opus', language='en')\n"
        "assert len(found.text.split()) > 3, found\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
