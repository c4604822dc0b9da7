"""What is said of a single place ahead is what reading the whole changed text says; it is asked as often as wanted."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_comparisons import reading_model, spelling_model
from test_runtime import END, KNOWN, Caches, Pair, both, caches, heard, said, unseeing, view, whole
from torch import Tensor

import diffasr
from diffasr.ballots import joint_rows
from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decode import Guide, decode
from diffasr.diffusion import joint, together
from diffasr.diffusion.options import AHEAD, MOST_AHEAD, SamplingOptions
from diffasr.errors import OptionError
from diffasr.hotwords import Favouring, Hotwords
from diffasr.loading import load
from diffasr.model import checkpoint
from diffasr.model.loaded import Model
from diffasr.places import Place
from diffasr.runtime import graphs
from diffasr.runtime.reader import Decoder, Reader

SAMPLES = Path(__file__).parent.parent / "samples"
TEXT = [9, 10, 11, 12, 13, 14]
GUIDANCE = [0.7, 0.0, 0.3]
tokens = st.integers(8, 20)
Question = tuple[int, int, list[int]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """By torch, and without it."""
    return both(tmp_path_factory.mktemp("ahead"), unseeing(), "float32")


@pytest.fixture(scope="module")
def prefilled(pair: Pair) -> Caches:
    return caches(pair)


def reader_of(model: Model, cache: Any, guidance: Sequence[float] = (0.0, 0.0, 0.0)) -> Reader:
    found = view(model).reader(cache, (), guidance, end=END)
    assert isinstance(found, Reader)
    return found


def spread(place: Place) -> Tensor:
    """(V,) log-probabilities."""
    return torch.tensor([place.of(token) for token in range(VOCABULARY)])


@settings(max_examples=25)
@given(st.lists(tokens, max_size=12), st.data())
def test_what_is_said_ahead_is_what_reading_the_whole_changed_text_says(
    pair: Pair, prefilled: Caches, text: list[int], data: st.DataObject
) -> None:
    theirs, cache = prefilled
    deaf = view(pair[0]).without_audio(theirs, torch.tensor([True] * 3))
    row, place = data.draw(st.integers(0, 2)), data.draw(st.integers(0, len(text)))
    new = data.draw(st.lists(tokens, min_size=1, max_size=5))
    reader = reader_of(pair[1], cache, GUIDANCE)
    reader.read([(0, [8, 8]), (1, [15]), (2, [])])
    reader.read([(row, text)])
    for size in range(1, len(new) + 1):
        changed = [*text[:place], *new[:size]]
        sound, silence = (whole(pair[0].network, told, changed, row)[-1:] for told in (theirs, deaf))
        told = reader.ahead(row, place, new[:size])
        said([told], (1 + GUIDANCE[row]) * sound - GUIDANCE[row] * silence)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize(("row", "other"), [(0, 1), (1, 0)])
def test_what_is_said_does_not_depend_on_what_was_asked_before(
    pair: Pair, prefilled: Caches, row: int, other: int, guidance: float
) -> None:
    def told(*questions: Question) -> list[Tensor]:
        reader = reader_of(pair[1], prefilled[1], [guidance] * 3)
        reader.read([(0, TEXT), (1, TEXT)])
        return [spread(reader.ahead(*question)) for question in questions]

    last = (row, 2, [15, 16])
    for before in ([(row, 2, [15])], [(row, 2, [15]), (row, 2, [15, 17])], [(row, 1, [15])], [(row, 2, [16])], [last],
                   [(other, 2, [15])], [(row, 2, [15]), (other, 2, [17])], [(row, 2, [15, 16, 17])],
                   [(row, 3, [15])]):  # fmt: skip
        assert torch.equal(told(*before, last)[-1], told(last)[-1])


@pytest.mark.parametrize("other", [[8, *TEXT[1:]], [9, 10], TEXT])
def test_a_text_that_is_read_is_asked_about_anew(pair: Pair, prefilled: Caches, other: list[int]) -> None:
    last = (0, 2, [15, 16])
    asked, fresh = (reader_of(pair[1], prefilled[1]) for _ in range(2))
    asked.read([(0, TEXT)])
    before = spread(asked.ahead(0, 2, [15]))
    for reader in (asked, fresh):
        reader.read([(0, other)])
    torch.testing.assert_close(spread(asked.ahead(*last)), spread(fresh.ahead(*last)), rtol=1e-5, atol=1e-5)
    moved = float((spread(asked.ahead(0, 2, [15])) - before).abs().max())
    assert (moved > 0.01) == (other[:2] != TEXT[:2]), "what stands before counts, and nothing behind"


def test_asking_changes_nothing_of_what_is_read_later(pair: Pair, prefilled: Caches) -> None:
    asking, plain = (reader_of(pair[1], prefilled[1], GUIDANCE) for _ in range(2))
    for text in (TEXT, [*TEXT[:2], 15, 16, *TEXT[3:]], TEXT[:3], [*TEXT, 8]):
        found, wanted = (reader.read([(0, text)])[0] for reader in (asking, plain))
        assert all(torch.equal(spread(a), spread(b)) for a, b in zip(found, wanted, strict=True))
        asking.ahead(0, 2, [15, 16])
        asking.ahead(0, 2, [15, 16, 17])
        asking.ahead(0, len(text), [8])


def test_each_token_of_a_branch_is_read_once(pair: Pair, prefilled: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = list[list[int]](), Decoder.embedded

    def noted(self: Decoder, tokens: Sequence[int]) -> Any:
        read.append(list(tokens))
        return plain(self, tokens)

    reader = reader_of(pair[1], prefilled[1])
    reader.read([(0, TEXT)])
    monkeypatch.setattr(Decoder, "embedded", noted)
    for new in ([15], [15, 16], [15, 16, 17]):
        reader.ahead(0, 2, new)
    assert read == [[15], [16], [17]]
    reader.ahead(0, 2, [15, 16])
    assert read[3:] == [[15], [16]], "another branch begins where it leaves the text"


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_one_token_after_another_is_read_as_all_at_once(tmp_path: Path, precision: str) -> None:
    model = both(tmp_path, unseeing(), precision)[1]
    cache = view(model).prefill(heard(model), KNOWN)
    reader, new = reader_of(model, cache, GUIDANCE), [15, 16, 17, 18, 19]
    reader.read([(row, TEXT) for row in range(3)])
    for row in range(3):
        (places,) = reader_of(model, cache, GUIDANCE).read([(row, [*TEXT[:2], *new])])
        for size in range(1, len(new) + 1):
            told = reader.ahead(row, 2, new[:size])
            torch.testing.assert_close(spread(told), spread(places[2 + size]), rtol=1e-5, atol=1e-5)


def test_in_int8_about_the_same_is_said(pair: Pair, prefilled: Caches, tmp_path: Path) -> None:
    coarse, told = both(tmp_path, unseeing(), "int8")[1], []
    cache = view(coarse).prefill(heard(coarse), KNOWN)
    for model, sound in ((pair[1], prefilled[1]), (coarse, cache)):
        reader = reader_of(model, sound)
        reader.read([(0, TEXT)])
        told.append(spread(reader.ahead(0, 2, [15, 16])))
    assert 0 < float((told[0] - told[1]).abs().max()) < 0.05 * float(told[0].abs().max())


HEARD, LANGUAGES = [61, 24, 96, 40], [0, 1, 2, 5]


def without_torch(folder: Path, model: Model) -> tuple[Model, Any]:
    """The same network, and random speech as it holds that."""
    checkpoint.save(folder, model)
    found = load(folder, threads=1)
    return found, heard(found, HEARD)


def decoded(
    writer: tuple[Model, Any], languages: list[int], hotwords: Hotwords | None = None, **options: Any
) -> tuple[list[str], list[int]]:
    """Texts, and behind how many tokens each question was asked."""
    asked, plain = list[int](), Reader.ahead

    def noted(self: Reader, number: int, place: int, tokens: Sequence[int]) -> Place:
        asked.append(len(tokens))
        return plain(self, number, place, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "ahead", noted)
        found = decode(*writer, languages, SamplingOptions(**options), guide=Guide(hotwords=hotwords))
    return [d.text for d in found], asked


def test_so_many_tokens_are_asked_behind_and_they_change_what_a_step_writes(tmp_path: Path) -> None:
    writer, most = without_torch(tmp_path, spelling_model(sharpness=0.3)), (0, 1, 3, AHEAD, 12)
    found = {ahead: decoded(writer, LANGUAGES, steps=1, ahead=ahead) for ahead in (*most, None)}
    assert [max(found[ahead][1], default=0) for ahead in most] == list(most)
    assert len({tuple(found[ahead][0]) for ahead in most}) == len(most)
    assert found[None] == found[AHEAD]


def test_where_a_favoured_word_may_stand_again_it_is_favoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is made before a favoured word: what stands behind it is asked about as it would be read."""
    model, speech = without_torch(tmp_path, spelling_model(sharpness=0.3))
    part, word = view(model).parts(speech)[0], ctc_texts(model, speech)[0]
    hotwords, plain, raised = Hotwords(words=(word,), threshold=5.0), Favouring.raised, list[bool]()

    def noted(self: Favouring, row: int, text: Sequence[int], number: int, place: Place) -> Place:
        found = plain(self, row, text, number, place)
        raised.append(found is not place)
        assert not raised[-1] or found.of(text[number]) > place.of(text[number])
        return found

    monkeypatch.setattr(Favouring, "raised", noted)
    asked = decoded((model, part), LANGUAGES[:1], hotwords, steps=2)[1]
    assert len(asked) == len(raised)
    assert any(raised)
    raised.clear()
    decoded((model, part), LANGUAGES[:1], None, steps=2)
    assert raised
    assert not any(raised)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_canvas_that_became_far_worse_is_not_handed_out(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "FEW", VOCABULARY)
    monkeypatch.setattr(joint, "FAR", math.inf)
    (model, speech), leeway = without_torch(tmp_path, spelling_model(seed)), together.LEEWAY
    cache = view(model).prefill(speech, LANGUAGES)
    joints, reader = joint_rows(model, cache, SamplingOptions()), reader_of(model, cache, [0.0] * len(LANGUAGES))

    def found(margin: float, **options: Any) -> tuple[list[str], list[int], list[float]]:
        monkeypatch.setattr(together, "LEEWAY", margin)
        texts = decode(model, speech, LANGUAGES, SamplingOptions(steps=250, **options))
        read = reader.read([(row, text.tokens) for row, text in enumerate(texts)])
        worths = [row.worth(text.tokens, places) for row, text, places in zip(joints, texts, read, strict=True)]
        return [text.text for text in texts], [text.steps for text in texts], worths

    shown, last = found(leeway), found(math.inf)
    assert shown[0] != last[0]
    assert shown[1] == last[1]
    for one, other, mine, end in zip(shown[0], last[0], shown[2], last[2], strict=True):
        assert one == other or mine > end + leeway
    assert found(leeway, ahead=0) == found(math.inf, ahead=0), "what is half done is not judged"


@pytest.mark.parametrize(("seed", "made"), [(0, spelling_model), (1, spelling_model), (2, reading_model)])
def test_however_far_it_looks_it_ends_where_one_token_after_another_leads_and_sooner(
    tmp_path: Path, seed: int, made: Callable[[int], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every token is weighed, and nothing is taken back."""
    monkeypatch.setattr(graphs, "FEW", VOCABULARY)
    monkeypatch.setattr(joint, "FAR", math.inf)
    monkeypatch.setattr(together, "LEEWAY", math.inf)
    writer = without_torch(tmp_path, made(seed))
    wanted = ar_texts(*writer, LANGUAGES, together=SamplingOptions())
    steps = []
    for ahead in (0, 2, MOST_AHEAD):
        found = decode(*writer, LANGUAGES, SamplingOptions(steps=250, ahead=ahead))
        assert [d.text for d in found] == wanted
        steps.append(sum(d.steps for d in found))
    assert steps[0] > steps[1] >= steps[2], steps


def test_a_number_of_tokens_has_bounds() -> None:
    for wrong in (-1, MOST_AHEAD + 1):
        with pytest.raises(OptionError, match=f"ahead must be from 0 to {MOST_AHEAD}, got {wrong}"):
            SamplingOptions(ahead=wrong)


def test_the_embedded_model_writes_more_in_a_step_with_it() -> None:
    transcriber = diffasr.load("mini")
    texts = [
        [transcriber.transcribe(SAMPLES / f"{code}.opus", language=code, options=options).text for code in ("en", "fr")]
        for options in (SamplingOptions(steps=1, ahead=ahead) for ahead in (0, AHEAD, None))
    ]
    assert texts[0] != texts[1] == texts[2]
