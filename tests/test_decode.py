"""Laws of decoding a batch of windows, with a network that is a script and with a random one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import random_model, random_speech, row_alone, wake
from torch import Tensor
from torch.nn import functional as F

from diffasr.canvases import denoise_steps
from diffasr.comparisons import ar_texts, ctc_texts
from diffasr.decodable import decodable
from diffasr.decode import Canvases, Decoded, Draft, decode
from diffasr.diffusion import ctc
from diffasr.diffusion.ctc import BUCKETS
from diffasr.diffusion.options import SamplingOptions
from diffasr.model.loaded import Model
from diffasr.model.network import Cache, Speech
from diffasr.text import LANGUAGES

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Script:
    """A network that hears the labels in ``frames`` and is sure of the answers it was given."""

    def __init__(self, model: Model, answers: list[str]) -> None:
        self.size, end = model.tokenizer.size, model.tokenizer.end
        self.answers = torch.full((len(answers), BUCKETS[-1]), end)
        for row, answer in enumerate(answers):
            ids = torch.tensor(model.tokenizer.encode(answer), dtype=torch.long)
            self.answers[row, : len(ids)] = ids
        self.calls: list[dict[str, Any]] = []

    def ctc_logits(self, speech: Speech) -> Tensor:
        return 30.0 * F.one_hot(speech.frames, self.size)

    def slots(self, speech: Speech) -> Tensor:
        return speech.lengths

    def prefill(self, speech: Speech, languages: Tensor | None) -> Cache:
        rows = len(speech.lengths)
        guess = torch.arange(rows) % len(LANGUAGES)
        return Cache(
            audio=speech.frames[..., None],
            slots=speech.lengths,
            ctc=self.ctc_logits(speech),
            languages=guess if languages is None else torch.where(languages < 0, guess, languages),
            language_logits=2.0 * F.one_hot(guess, len(LANGUAGES)).float(),
            memory=self.answers,
        )

    def select(self, cache: Cache, rows: Tensor) -> Cache:
        return replace(
            cache,
            ctc=cache.ctc[rows],
            languages=cache.languages[rows],
            language_logits=cache.language_logits[rows],
            slots=cache.slots[rows],
            memory=cache.memory[rows],
        )

    def denoise(self, canvas: Tensor, cache: Cache, **given: Any) -> Tensor:
        self.calls.append({"canvas": canvas} | given)
        return 30.0 * F.one_hot(cache.memory[:, : canvas.shape[1]], self.size)


def heard(model: Model, texts: list[str]) -> Speech:
    """What CTC will read as ``texts``: each label once, a blank behind it."""
    blank = model.tokenizer.end
    rows = [[x for i in model.tokenizer.encode(text) for x in (i, blank)] or [blank] for text in texts]
    frames = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=blank)
    return Speech(frames=frames, lengths=torch.tensor([len(r) for r in rows]))


def scripted(
    answers: list[str], hears: list[str] | None = None, languages: Sequence[int] | None = None, **options: Any
) -> tuple[list[Decoded], Script]:
    model = random_model()
    script = Script(model, answers)
    speech = heard(model, answers if hears is None else hears)
    model = Model(network=script, tokenizer=model.tokenizer, config=model.config)  # type: ignore[arg-type]
    assert ctc_texts(model, speech) == (answers if hears is None else hears)
    return decode(model, speech, languages, SamplingOptions(**options)), script


@pytest.mark.parametrize("accept", ["prefix", "entropy", "all"])
def test_the_text_is_the_denoisers_not_ctcs(accept: str) -> None:
    results, _ = scripted(["the cat", "a dog"], hears=["te ct", "a dogg"], accept=accept)
    assert [r.text for r in results] == ["the cat", "a dog"]
    assert all(r.avg_logprob == pytest.approx(0, abs=1e-5) and r.avg_logprob <= 0 for r in results)
    assert results[1].steps == 2
    assert results[0].steps == 2 if accept != "prefix" else 2 < results[0].steps <= 5


def test_where_ctc_hears_nothing_nothing_is_written() -> None:
    results, script = scripted(["never", "a dog", "said"], hears=["", "a dog", ""])
    assert [r.text for r in results] == ["", "a dog", ""]
    assert (results[0].steps, results[0].avg_logprob) == (0, 0.0)
    assert all(len(call["canvas"]) == 1 for call in script.calls), "silent rows cost no step"
    nothing, script = scripted(["x", "y"], hears=["", ""])
    assert [r.text for r in nothing] == ["", ""]
    assert script.calls == []


def test_a_text_that_does_not_end_gets_a_larger_canvas() -> None:
    long = "".join(LETTERS[i % 26] for i in range(60))
    results, script = scripted(["a dog", long, "see"], hears=["a dog", "ab", "see"], accept="entropy")
    assert [r.text for r in results] == ["a dog", long, "see"]
    sizes = [(len(c["canvas"]), c["canvas"].shape[1]) for c in script.calls]
    assert sizes == [(3, 16)] * 2 + [(1, 32)] * 2 + [(1, 48)] * 2 + [(1, 96)] * 2


def test_the_largest_canvas_is_the_last() -> None:
    longest = "".join(LETTERS[i % 26] for i in range(BUCKETS[-1]))
    results, script = scripted([longest], hears=["ab"], steps=1, accept="entropy")
    assert (results[0].text, results[0].is_whole) == (longest, False)
    assert [c["canvas"].shape[1] for c in script.calls] == list(BUCKETS)
    assert scripted([longest[:-1]], hears=["ab"], steps=1, accept="entropy")[0][0].is_whole


def test_rows_of_a_batch_have_canvases_of_their_own_length() -> None:
    _, script = scripted(["ab", LETTERS], steps=1)
    call = script.calls[0]
    assert call["lengths"].tolist() == [16, 48]
    assert call["canvas"].shape == (2, 48)


def test_languages_are_taken_or_found() -> None:
    texts = ["the", "die", "a"]
    found, _ = scripted(texts)
    assert [r.language for r in found] == ["en", "de", "fr"]
    told, _ = scripted(texts, languages=[5, -1, 2])
    assert [r.language for r in told] == ["zh", "de", "fr"]
    guess = F.softmax(torch.tensor([2.0, 0, 0, 0, 0, 0]), 0)
    assert [r.language_probability for r in told] == pytest.approx([guess[1].item(), *[guess[0].item()] * 2])


def test_the_canvas_starts_from_ctc_or_from_noise_or_in_between() -> None:
    said = "the cat"
    model = random_model()
    ids = torch.tensor(model.tokenizer.encode(said))

    def first(**options: Any) -> Tensor:
        return scripted([said], **options)[1].calls[0]["canvas"][0]

    seed = first()
    assert torch.equal(seed[: len(ids)], ids)
    assert (seed[len(ids) :] == model.tokenizer.end).all()
    noise = first(start="noise")
    assert (noise == seed).float().mean() < 0.3
    assert not torch.equal(noise, first(start="noise", seed=1))
    half = (first(seed_noise=0.5) == seed).float().mean()
    assert 0.2 < half < 0.9
    assert (first(seed_noise=1.0) == seed).float().mean() < 0.3
    assert torch.equal(first(seed_noise=0.5), first(seed_noise=0.5))


@pytest.mark.parametrize("start", ["ctc", "sample", "noise"])
def test_any_whole_number_is_a_seed(start: Any) -> None:
    one, other = (scripted(["the cat"], start=start, seed=seed)[0] for seed in (-3, 2**40))
    assert one[0].text == other[0].text == "the cat"


def test_ctc_has_its_say_at_its_own_places() -> None:
    said, heard_as = "the cat and", "the dog"
    assert scripted([said], [heard_as])[0][0].text == said
    (fused,), _ = scripted([said], [heard_as], ctc_weight=2.0)
    ids, kept = (random_model().tokenizer.encode(text) for text in (said, heard_as))
    assert fused.text == random_model().tokenizer.decode([*kept, *ids[len(kept) :]])
    assert scripted([said], [heard_as], ctc_weight=0.5)[0][0].text == said


def test_token_by_token_is_the_most_likely_next_each_time() -> None:
    model, lengths, languages = random_model(), [40, 13, 27], [0, 3, 5]
    speech = random_speech(lengths)
    texts = ar_texts(model, speech, languages, most=9)
    for row in range(3):
        cache = decodable(model.network).prefill(row_alone(speech, row), languages[row : row + 1])
        tokens: list[int] = []
        while len(tokens) < 9 and model.tokenizer.end not in tokens:
            logits = model.network.ar_logits(torch.tensor([tokens], dtype=torch.long), cache.cache)
            tokens.append(int(logits[0, -1].argmax()))
        assert texts[row] == model.tokenizer.decode(tokens)
    assert ar_texts(model, speech, languages, most=0) == ["", "", ""]


def test_hints_say_where_ctc_heard_each_token() -> None:
    _, script = scripted(["the cat"], steps=1)
    hints = script.calls[0]["hints"][0].tolist()
    assert hints[:5] == [0, 2, 4, 6, 8], "the token, and a blank behind it"
    assert hints[5:] == [-1] * 11


def test_drafts_are_shown_with_the_rows_they_hold() -> None:
    model = random_model()
    script = Script(model, ["a dog", "never", LETTERS])
    speech = heard(model, ["a dog", "", "ab"])
    model = Model(network=script, tokenizer=model.tokenizer, config=model.config)  # type: ignore[arg-type]
    shown: list[tuple[int, list[int]]] = []

    def show(draft: Draft, rows: list[int]) -> None:
        assert len(draft.tokens) == len(rows)
        shown.append((draft.step, rows))

    decode(model, speech, None, SamplingOptions(accept="entropy"), show)
    assert shown == [(1, [0, 2]), (2, [0, 2]), (1, [2]), (2, [2])]


@pytest.mark.parametrize("accept", ["prefix", "entropy", "all"])
@pytest.mark.parametrize("start", ["ctc", "noise"])
def test_a_row_of_a_batch_equals_the_row_alone(start: Any, accept: Any) -> None:
    model, lengths = wake(random_model()), [90, 12, 50, 33]
    speech = random_speech(lengths)
    options = SamplingOptions(steps=4, start=start, seed_noise=0.2, accept=accept, temperature=0.5, entropy_bound=1.0)
    together = decode(model, speech, [0, -1, 3, -1], options)
    for row, language in enumerate([0, -1, 3, -1]):
        (alone,) = decode(model, row_alone(speech, row), [language], options)
        assert (alone.text, alone.language, alone.steps) == (
            together[row].text, together[row].language, together[row].steps
        )  # fmt: skip
        assert alone.avg_logprob == pytest.approx(together[row].avg_logprob, abs=1e-3)
        assert alone.language_probability == pytest.approx(together[row].language_probability, abs=1e-4)
    assert len({r.text for r in together}) > 1
    assert decode(model, speech, [0, -1, 3, -1], options) == together


def test_steps_are_counted_row_by_row() -> None:
    """A row that is right from the start is done after two looks, whatever its neighbour still has to learn."""
    answers, hears = ["a dog", "them and us"], ["a dog", "tm d u"]
    together, _ = scripted(answers, hears, steps=12)
    alone = [scripted([a], [h], steps=12)[0][0] for a, h in zip(answers, hears, strict=True)]
    assert [r.text for r in together] == answers
    assert [r.steps for r in together] == [r.steps for r in alone]
    assert together[0].steps == 2 < together[1].steps


@pytest.mark.parametrize(
    ("hears", "steps", "slots"),
    [
        ("thedugran", 2, [0, 2, 4, 6, 8, 10, 12]),
        ("thedoogran", 2, [0, 2, 4, 8, 10, 12, 14]),
        ("thedgran", 3, [0, 2, -1, 4, 6, 8, 10]),
    ],
    ids=["another letter", "a letter too much", "a letter lost: the next is taken for it, until it is missed"],
)
def test_behind_the_confirmed_text_ctc_goes_on(hears: str, steps: int, slots: list[int]) -> None:
    (said,), script = scripted(["thedogran"], [hears])
    assert said.text == "thedogran"
    assert said.steps == steps, "one error, one change, and a look that finds nothing wrong"
    ids, end = random_model().tokenizer.encode("thedogran"), random_model().tokenizer.end
    assert script.calls[-1]["canvas"][0].tolist() == ids + [end] * (16 - len(ids))
    assert script.calls[-1]["hints"][0].tolist() == slots + [-1] * (16 - len(slots))


@pytest.mark.parametrize(("answer", "hears"), [
    ("the cat", "the cat"), ("the cat", "a"), ("a", "the cat and them"), ("them and us", "tm d us"), ("", "a dog"),
    ("see the dog", "the dog"), ("abcabcabc", "abcabc"),
])  # fmt: skip
def test_a_denoiser_that_knows_gets_its_way_with_any_ctc(answer: str, hears: str) -> None:
    (said,), script = scripted([answer], [hears], steps=14)
    assert said.text == answer
    ids = random_model().tokenizer.encode(answer)
    assert script.calls[-1]["canvas"][0, : len(ids) + 1].tolist() == [*ids, random_model().tokenizer.end]
    hints = torch.cat([call["hints"][0] for call in script.calls])
    assert hints.max() < 2 * len(random_model().tokenizer.encode(hears)), "no hint points behind CTC's last token"


def test_a_full_canvas_is_the_same_in_a_wider_batch() -> None:
    """A row whose 16 places are all confirmed and hold no end: its hints stay, however wide its neighbours are."""
    full, hears = "q" * 15 + "h" + "z" * 9, "abcdefgh"
    texts, double = scripted([full, LETTERS], [hears, LETTERS], steps=20)
    (text,), single = scripted([full], [hears], steps=20)
    assert texts[0] == text
    first = [[c["hints"][0, :16] for c in s.calls if len(c["canvas"]) == n and c["canvas"].shape[1] == w]
             for s, n, w in ((single, 1, 16), (double, 2, 48))]  # fmt: skip
    assert len(first[0]) > 15
    for one, other in zip(*first, strict=False):
        assert torch.equal(one, other)


def test_one_vote_is_no_vote_and_more_merge_what_several_canvases_say() -> None:
    model, speech, known = random_model(), random_speech([60, 31]), [0, 5]
    options: dict[str, Any] = {"steps": 1, "accept": "all", "start": "noise", "temperature": 1.0}
    plain = decode(model, speech, known, SamplingOptions(**options))
    assert decode(model, speech, known, SamplingOptions(**options, votes=1)) == plain
    voted = decode(model, speech, known, SamplingOptions(**options, votes=5))
    assert [v.language for v in voted] == ["en", "zh"]
    assert [v.text for v in voted] != [p.text for p in plain]
    other = decode(model, speech, known, SamplingOptions(**options, votes=5, seed=1))
    assert [v.text for v in voted] != [o.text for o in other]
    for row in (0, 1):
        (alone,) = decode(model, row_alone(speech, row), known[row : row + 1],
                          SamplingOptions(**options, votes=5))  # fmt: skip
        assert alone.text == voted[row].text, "neighbours do not vote"


@pytest.mark.parametrize("accept", ["all", "entropy", "prefix"])
def test_every_vote_has_its_own_die_and_none_looks_at_neighbours(accept: Any) -> None:
    model, lengths = wake(random_model()), [60, 31, 45]
    speech, known = random_speech(lengths), [0, 5, 2]
    options = SamplingOptions(steps=3, accept=accept, temperature=2.0, final_temperature=2.0, votes=4, alternatives=4)
    together = decode(model, speech, known, options)
    for row in range(len(lengths)):
        (alone,) = decode(model, row_alone(speech, row), known[row : row + 1], options)
        assert (alone.text, {a.text for a in alone.alternatives}) == (
            together[row].text, {a.text for a in together[row].alternatives}
        )  # fmt: skip
    assert len({d.text for d in together}) > 1


def test_votes_on_the_same_canvas_draw_apart(model: Model) -> None:
    speech, path = random_speech([40]), ctc.Path([5, 6, 7], [0, 1, 2], 0.0)
    cache = decodable(model.network).select(decodable(model.network).prefill(speech, [0]), [0, 0, 0])
    options = SamplingOptions(steps=2, accept="all", temperature=30.0)
    for seeds, kinds in (([3, 3, 3], 1), ([3, 4, 5], 3)):
        *_, draft = denoise_steps(model, cache, Canvases([path] * 3, [16] * 3, seeds), options)
        assert len({tuple(row.tolist()) for row in draft.log_probability}) == kinds


def test_canvases_of_a_window_start_differently_and_the_first_as_it_would_alone() -> None:
    starts: list[Any] = ["ctc", "noise"]
    for start in starts:
        _, script = scripted(["the cat", "them"], start=start, votes=3, steps=1)
        canvas = script.calls[0]["canvas"]
        _, single = scripted(["the cat", "them"], start=start, steps=1)
        assert torch.equal(canvas[::3], single.calls[0]["canvas"])
        if start == "noise":
            assert len({tuple(row) for row in canvas[:3].tolist()}) == 3
    results, script = scripted(["the cat", "", "them"], hears=["the cat", "", "them"], votes=3)
    assert [r.text for r in results] == ["the cat", "", "them"]
    shown: list[list[int]] = []
    model = Model(network=script, tokenizer=random_model().tokenizer, config=random_model().config)  # type: ignore[arg-type]
    decode(model, heard(random_model(), ["the cat", "", "them"]), None, SamplingOptions(votes=3),
           lambda draft, rows: shown.append([len(draft.tokens), *rows]))  # fmt: skip
    assert shown[0] == [2, 0, 2], "a window is shown once"


def test_words_are_put_where_ctc_heard_them() -> None:
    (said,), _ = scripted(["the cat and"])
    model = random_model()
    ids = model.tokenizer.encode("the cat and")
    assert [w.word for w in said.words] == ["the", "cat", "and"]
    assert said.words[0].first == 0
    assert said.words[-1].last == 2 * (len(ids) - 1)
    assert all(w.first <= w.last for w in said.words)
    assert [w.first for w in said.words] == sorted(w.first for w in said.words)
    assert all(w.probability == pytest.approx(1, abs=1e-4) for w in said.words)
