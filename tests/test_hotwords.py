"""Laws of hotwords: what the sound speaks for is written, what it does not speak for is not."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import random_model, tiny_tokenizer
from test_decode import Script, heard

from diffasr import transcribe as module
from diffasr.canvases import raised
from diffasr.cli import parse
from diffasr.cli.transcribe import _settings
from diffasr.decode import Guide, decode
from diffasr.diffusion import ctc
from diffasr.diffusion.options import SamplingOptions
from diffasr.errors import OptionError
from diffasr.hotwords import Favouring, Hotwords, checked, favoured, put_in, read_list
from diffasr.model.loaded import Model
from diffasr.text import Tokenizer
from diffasr.transcribe import Transcriber
from diffasr.whole import places_of

TINY = tiny_tokenizer()
MINI = Path(module.__file__).parent / "assets" / "mini" / "tokenizer.json"


def posterior(text: str, tokenizer: Tokenizer, other: str | None = None, nats: float = 1.0) -> np.ndarray:
    """Logits (N, C) that say ``text`` plainly, a blank behind each label; ``other``, of as many labels, is ``nats`` a
    label less likely, all else hopeless."""
    labels = [x for label in tokenizer.pieces(text) for x in (label, tokenizer.blank)]
    logits = 30 * np.eye(len(tokenizer.alphabet), dtype=np.float32)[labels]
    second = [x for label in tokenizer.pieces(other or text) for x in (label, tokenizer.blank)]
    assert len(second) == len(labels)
    for slot, (a, b) in enumerate(zip(labels, second, strict=True)):
        if a != b:
            logits[slot, b] = 30.0 - nats
    return logits


def mended(
    logits: np.ndarray, tokenizer: Tokenizer, *words: str, language: str = "en", **how: float
) -> tuple[str, ctc.Path]:
    """CTC's text with the hotwords in it."""
    path = ctc.best_path(logits, blank=tokenizer.blank)
    path = put_in(path, logits, tokenizer, Hotwords(words=words, **how), language)
    assert path.slots == sorted(set(path.slots))
    assert len(path.slots) == len(path.tokens)
    return tokenizer.decode(tokenizer.alphabet[label] for label in path.tokens), path


def test_a_word_that_the_sound_speaks_for_takes_the_place_of_what_was_heard() -> None:
    logits = posterior("see my bat run", TINY, other="see my cat run")
    text, path = mended(logits, TINY, "cat", "zebra")
    assert (text, path.favoured) == ("see my cat run", ("cat",))
    assert mended(logits, TINY)[0] == "see my bat run"
    assert mended(logits, TINY, "zebra") == mended(logits, TINY)


def test_the_threshold_says_how_far_off_a_word_may_be() -> None:
    logits = posterior("see my bat run", TINY, other="see my cat run", nats=8.0)  # of four labels, the space is one
    assert mended(logits, TINY, "cat", threshold=1.9)[0] == "see my bat run"
    assert mended(logits, TINY, "cat", threshold=2.1)[0] == "see my cat run"
    assert mended(logits, TINY, "bat", threshold=0.0)[1].favoured == ("bat",)


@pytest.mark.parametrize(("said", "word"), [("hamburger", "hamburg"), ("combat", "bat"), ("the bats", "bat")])
def test_a_part_of_a_word_is_not_the_word(said: str, word: str) -> None:
    text, path = mended(posterior(said, TINY), TINY, word)
    assert (text, path.favoured) == (said, ())


def test_a_word_heard_in_two_pieces_is_one() -> None:
    logits = posterior("my ham burg is", TINY)
    gap = 2 * len(TINY.pieces("my ham"))  # the space behind, a blank after each label
    logits[gap, TINY.blank] = 29.0
    assert mended(logits, TINY, "hamburg")[0] == "my hamburg is"


def test_the_nearer_of_two_words_wins_and_the_longer_of_equals() -> None:
    logits = posterior("a bat", TINY, other="a cat", nats=1.0)
    slot = TINY.pieces("a bat").index(TINY.pieces("b")[0]) * 2
    logits[slot, TINY.pieces("m")[0]] = 27.0
    assert mended(logits, TINY, "mat", "cat")[0] == "a cat"
    assert mended(logits, TINY, "mat")[0] == "a mat"
    assert mended(posterior("in new york", TINY), TINY, "york", "new york")[1].favoured == ("newyork",)


def test_a_word_is_written_as_the_list_writes_it_but_for_a_sentences_capital() -> None:
    tokenizer = Tokenizer.load(MINI, letters=2)
    text, path = mended(posterior("ich mag hamburg sehr", tokenizer), tokenizer, "Hamburg", language="de")
    assert (text, path.favoured) == ("ich mag Hamburg sehr", ("Hamburg",))
    assert mended(posterior("Ich mag das", tokenizer), tokenizer, "ich", language="de")[0] == "Ich mag das"


@pytest.mark.parametrize("said", ["ich mag {}, sehr", "wo ist {}?", "¿{} o no?", "das ({}) da", "{}."])
def test_marks_around_a_word_are_no_part_of_it(said: str) -> None:
    tokenizer = Tokenizer.load(MINI, letters=2)
    heard_as, wanted = said.format("hamburg"), said.format("Hamburg")
    assert mended(posterior(heard_as, tokenizer), tokenizer, "Hamburg", language="de")[0] == wanted
    text, path = mended(posterior("das ist don't da", tokenizer), tokenizer, "don")
    assert (text, path.favoured) == ("das ist don't da", ())


def test_mandarin_words_stand_anywhere() -> None:
    tokenizer = Tokenizer.load(MINI, letters=2)
    logits = posterior("我在北京吃饭", tokenizer)
    assert mended(logits, tokenizer, "北京", language="zh")[1].favoured
    assert not mended(logits, tokenizer, "北京", language="en")[1].favoured, "no word of its own"


def test_only_the_tokens_of_the_word_are_raised() -> None:
    path = ctc.Path([], [], 0.0, favoured=("cat",), favour=4.0)
    canvas = [*TINY.encode("a cat and scatter"), TINY.end, *TINY.encode("cat")]
    first = canvas.index(TINY.encode("c")[0])
    held = sorted(favoured(canvas, path, TINY))
    assert held[:3] == [first, first + 1, first + 2]
    assert held[-1] < canvas.index(TINY.end)
    flat = torch.zeros(1, len(canvas), TINY.size)
    bent = raised(flat, torch.tensor([canvas]), [path], TINY)
    assert (bent != 0).nonzero().tolist() == [[0, place, canvas[place]] for place in held]
    assert set(bent.unique().tolist()) == {0.0, 4.0}
    assert raised(flat, torch.tensor([canvas]), [ctc.Path([], [], 0.0)], TINY) is flat


def test_a_reader_of_texts_raises_the_words_as_logits_would_be() -> None:
    dice = torch.Generator().manual_seed(0)
    texts = [TINY.encode("a cat"), TINY.encode("the cat sat")]
    logits = [torch.randn(len(text) + 1, TINY.size, generator=dice) for text in texts]
    paths = [ctc.Path([], [], 0.0), ctc.Path([], [], 0.0, favoured=("cat",), favour=4.0)]
    plain = MagicMock(looks_ahead=True, read=lambda asked: [places_of(logits[row]) for row, _ in asked])
    reader = Favouring(plain, paths, TINY)
    for (row, text), found in zip(enumerate(texts), reader.read(list(enumerate(texts))), strict=True):
        bent = raised(logits[row][None], torch.tensor([[*text, TINY.end]]), [paths[row]], TINY)[0].log_softmax(-1)
        said = torch.tensor([[place.of(token) for token in range(TINY.size)] for place in found])
        torch.testing.assert_close(said, bent)
    assert reader.looks_ahead
    assert reader.ahead(1, 2, [3]) is plain.ahead.return_value
    plain.ahead.assert_called_once_with(1, 2, [3])


def decoded(answers: list[str], hears: list[str], hotwords: Hotwords | None, **options: Any) -> list[str]:
    """Texts where the denoiser is sure of its answers, by 30 nats."""
    model = random_model()
    scripted = Model(network=Script(model, answers), tokenizer=model.tokenizer, config=model.config)  # type: ignore[arg-type]
    found = decode(scripted, heard(model, hears), None, SamplingOptions(**options), None, Guide(hotwords=hotwords))
    return [d.text for d in found]


def test_the_denoiser_may_turn_a_word_down_that_is_not_biased_enough() -> None:
    says, hears = ["my cat"], ["my bat"]
    assert decoded(says, hears, None) == ["my cat"]
    assert decoded(says, hears, Hotwords(words=("bat",))) == ["my cat"]
    assert decoded(says, hears, Hotwords(words=("bat",), bias=31.0)) == ["my bat"]
    assert decoded(says, hears, Hotwords(words=("hat",), bias=31.0)) == ["my cat"]


def test_rows_are_biased_each_for_itself() -> None:
    hotwords = Hotwords(words=("bat",), bias=31.0)
    together = decoded(["my cat", "my cat"], ["my bat", "my rat"], hotwords)
    assert together == ["my bat", "my cat"]
    assert together == [decoded(["my cat"], [text], hotwords)[0] for text in ("my bat", "my rat")]


def test_every_vote_starts_from_the_words() -> None:
    assert decoded(["my cat"], ["my bat"], Hotwords(words=("bat",), bias=31.0), votes=3) == ["my bat"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"words": "bat"}, "list"),
        ({"words": ("bat", " ")}, "letter"),
        ({"words": ("bat", 3)}, "3"),
        ({"words": ("a",) * 2001}, "2001"),
        ({"words": ("a",), "threshold": -1.0}, "threshold"),
        ({"words": ("a",), "bias": float("nan")}, "bias"),
    ],
)
def test_bad_hotwords_are_refused_by_name(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Hotwords(**wrong)


def test_a_list_of_words_is_hotwords() -> None:
    assert checked(["b  c", "a", "b c"]) == Hotwords(words=("b c", "a"))
    assert checked(None) is None
    with pytest.raises(OptionError, match="'bat'"):
        checked("bat")


def test_a_command_line_gives_words_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\ufeffNew York\n\nbat, or so\n", encoding="utf-8")
    assert read_list("New York, bat,") == Hotwords(words=("New York", "bat"))
    assert read_list(f"@{tmp_path / 'list'}") == Hotwords(words=("New York", "bat, or so"))
    assert read_list(None) is None
    with pytest.raises(OptionError, match="nowhere"):
        read_list("@nowhere")
    call = ["transcribe", "x.wav"]
    assert _settings(parse([*call, "--hotwords", "bat"])).arguments()["hotwords"] == Hotwords(words=("bat",))
    assert _settings(parse(call)).arguments()["hotwords"] is None


def test_a_transcriber_passes_them_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Guide] = []

    def stand_in(model: Any, speech: Any, languages: Any, options: Any, show: Any, guide: Guide) -> list[Any]:
        seen.append(guide)
        raise InterruptedError

    monkeypatch.setattr(module, "decode", stand_in)
    sound = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy()
    listen = module.ListenOptions(vad=False)
    with pytest.raises(InterruptedError):
        Transcriber(model).transcribe(sound, listen=listen, hotwords=["bat"])
    with pytest.raises(InterruptedError):
        next(Transcriber(model).stream(sound, listen=listen, hotwords=Hotwords(words=("bat",), bias=1.0)))
    assert [g.hotwords for g in seen] == [Hotwords(words=("bat",)), Hotwords(words=("bat",), bias=1.0)]
    with pytest.raises(OptionError, match="list"):
        Transcriber(model).transcribe(sound, hotwords="bat")


def test_words_that_nobody_says_change_nothing_that_the_mini_hears() -> None:
    asr, sample = module.load("mini"), Path(__file__).parents[1] / "samples" / "en.opus"
    plain = asr.transcribe(sample, language="en")
    strange = ["Mississippi", "Bundesverfassungsgericht", "Kathmandu", "Oppenheimer", "Guadalajara", "photosynthesis"]
    assert asr.transcribe(sample, language="en", hotwords=strange) == plain
    assert "hard" in asr.transcribe(sample, language="en", hotwords=["hard", *strange]).text.split()
