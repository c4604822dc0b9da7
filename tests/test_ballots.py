"""Several canvases of a window: where they start, which text is taken, and what is handed out beside it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model, random_speech, row_alone, wake
from test_decode import Script, heard

from diffasr.ballots import alternatives, ballot_paths, guidance
from diffasr.decodable import decodable
from diffasr.decode import Decoded, decode
from diffasr.diffusion import ctc
from diffasr.diffusion.options import SamplingOptions
from diffasr.model.loaded import Model
from diffasr.model.network import Speech
from diffasr.seams import sew
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber
from diffasr.transcript import Alternative, Segment, Word
from diffasr.windows import ListenOptions

MODEL = wake(random_model())


SPEECH = random_speech([50, 80], seed=6)


def paths(speech: Speech = row_alone(SPEECH, 1), **options: Any) -> list[list[int]]:  # noqa: B008
    cache = decodable(MODEL.network).prefill(speech, None)
    again = [row for row in range(len(speech)) for _ in range(options.get("votes", 1))]
    cache = decodable(MODEL.network).select(cache, again)
    return [path.tokens for path in ballot_paths(MODEL, cache, SamplingOptions(**options))]


def test_the_best_path_comes_first_and_a_sample_is_drawn_for_all() -> None:
    (best,) = paths()
    votes, sampled = paths(votes=4), paths(votes=4, start="sample")
    assert votes[0] == best
    assert best not in sampled
    assert len({tuple(p) for p in votes}) > 1
    assert len({tuple(p) for p in sampled}) == 4
    assert sampled == paths(votes=4, start="sample")
    assert sampled != paths(votes=4, start="sample", seed=1)
    assert paths(SPEECH, votes=4, start="sample")[4:] == sampled, "no neighbour has a say in it"


def test_a_sample_is_drawn_from_the_posterior() -> None:
    dice = np.random.default_rng(0)
    for said in np.float32([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]]):
        drawn = ctc.sampled(np.tile(said, (4000, 1)), generator=dice).argmax(1)
        shares = np.bincount(drawn, minlength=3) / 4000
        np.testing.assert_allclose(shares, np.exp(ctc.log_softmax(said)), atol=0.03)


def test_the_checkpoint_guides_some_languages_where_writing_is_joint_and_only_there() -> None:
    model = replace(MODEL, config=replace(MODEL.config, decoding={"hi": {"guidance": 0.7}}))
    cache = decodable(model.network).prefill(SPEECH, [list(LANGUAGES).index(code) for code in ("hi", "de")])
    for options, weights in (
        (SamplingOptions(accept="joint"), [0.7, 0.0]),
        (SamplingOptions(accept="all"), [0.0, 0.0]),
        (SamplingOptions(accept="joint", guidance=0.2), [0.2, 0.2]),
        (SamplingOptions(accept="all", guidance=0.2), [0.2, 0.2]),
    ):
        assert guidance(model, cache, options) == weights


class Quarrel(Script):
    """A script whose canvases of one window say different things, whatever they start from."""

    def select(self, cache: Any, rows: Sequence[int]) -> Any:
        chosen = super().select(cache, rows)
        if len(rows) > len(cache.slots):  # the canvases of the votes
            chosen = replace(chosen, memory=self.answers[: len(rows)])
        return chosen


BALLOTS = ["the cat sat down", "the bat sat down", "the bat saw dawn"]


def voted(**options: Any) -> Decoded:
    model = random_model()
    script = Quarrel(model, BALLOTS)
    asked = Model(network=script, tokenizer=model.tokenizer, config=model.config)  # type: ignore[arg-type]
    (found,) = decode(asked, heard(model, BALLOTS[:1]), None, SamplingOptions(votes=3, accept="all", **options))
    return found


def test_words_are_elected_or_the_text_of_least_risk_is_taken() -> None:
    elected, chosen = voted(), voted(merge="mbr")
    assert elected.text == chosen.text == BALLOTS[1]
    assert elected.tokens == tuple(MODEL.tokenizer.encode(BALLOTS[0])), "of the first"
    assert chosen.tokens == tuple(MODEL.tokenizer.encode(BALLOTS[1]))
    assert elected.alternatives == ()


def test_agreement_reaches_the_probability_of_a_word() -> None:
    found = {w.word: w for w in voted().words}
    assert found["the"].belief == pytest.approx(found["the"].probability)
    assert found["bat"].belief == pytest.approx(found["bat"].probability * 2 / 3)


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_alternatives_are_different_texts_the_most_agreed_first(most: int) -> None:
    found = voted(alternatives=most).alternatives
    assert [a.text for a in found] == [BALLOTS[1], BALLOTS[0], BALLOTS[2]][:most]
    assert [a.score for a in found] == pytest.approx([2.25 / 3, 2 / 3, 1.75 / 3][:most])


def test_a_text_that_comes_twice_is_one_alternative_with_its_best_likelihood() -> None:
    ballots = [Decoded(text=t, language="en", language_probability=1.0, avg_logprob=p, steps=1)
               for t, p in (("a b", -2.0), ("a c", -0.5), ("a b", -1.0))]  # fmt: skip
    found = alternatives(ballots, [b.text.split() for b in ballots], 3)
    assert [(a.text, a.avg_logprob) for a in found] == [("a b", -1.0), ("a c", -0.5)]


def test_alternatives_reach_the_json_and_are_none_where_nobody_asked() -> None:
    clip = torch.randn(16000, generator=torch.Generator().manual_seed(0)).numpy()
    asr = Transcriber(MODEL)
    options = SamplingOptions(votes=4, start="sample", alternatives=3, accept="all", steps=1)
    listen = ListenOptions(vad=False, no_speech=1.0, compression_ratio=1e9, repetition=1.0)
    (segment,) = asr.transcribe(clip, language="en", options=options, listen=listen).to_dict()["segments"]
    assert 1 < len(segment["alternatives"]) <= 3
    assert all(set(a) == {"text", "score", "avg_logprob"} for a in segment["alternatives"])
    (plain,) = asr.transcribe(clip, language="en", options=replace(options, alternatives=0), listen=listen).segments
    assert plain.to_dict()["alternatives"] == []


def test_a_seam_that_cuts_a_text_leaves_it_without_alternatives() -> None:
    other = (Alternative(text="one too", score=0.5, avg_logprob=-1.0),)

    def segment(start: float, words: list[str]) -> Segment:
        timed = tuple(
            Word(word=w, start=start + n, end=start + n + 0.5, probability=1.0) for n, w in enumerate(words)
        )  # fmt: skip
        return Segment(start=start, end=start + len(words), text=" ".join(words), language="en", avg_logprob=-1.0,
                       steps=1, words=timed, alternatives=other)  # fmt: skip

    left, right = sew(segment(0.0, ["one", "two", "three"]), segment(1.0, ["two", "three", "four"]))
    assert isinstance(left, Segment)
    assert isinstance(right, Segment)
    assert left.alternatives == right.alternatives == ()
    whole, _ = sew(segment(0.0, ["one", "two"]), segment(2.0, ["three"]))
    assert isinstance(whole, Segment)
    assert whole.alternatives == other
