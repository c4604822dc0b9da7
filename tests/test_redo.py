"""Laws of writing a segment anew: what is kept is there word for word, what was not touched is as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import random_model, wake
from test_comparisons import spelling_model
from test_decode import Script, heard

from diffasr import cli
from diffasr.audio import SAMPLE_RATE_HZ, Samples
from diffasr.errors import OptionError
from diffasr.model.checkpoint import save
from diffasr.model.loaded import Model
from diffasr.redo import Fix, cut_out, fixes, pieces_of, rewrite
from diffasr.text import LANGUAGES
from diffasr.transcribe import Transcriber
from diffasr.transcript import Alternative, Segment, Transcript, Word, joined


def noise(seconds: float) -> Samples:
    samples: Samples = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE_HZ)).astype(np.float32)
    return 0.1 * samples


def segment(text: str, start: float, end: float, language: str = "en") -> Segment:
    """Its words said evenly."""
    spoken = text.split() if language != "zh" else list(text)
    edges = np.linspace(start, end, len(spoken) + 1).tolist()
    words = tuple(
        Word(word=w, start=a, end=b, probability=0.5) for w, a, b in zip(spoken, edges[:-1], edges[1:], strict=True)
    )
    others = (Alternative(text=f"{text} or so", score=0.5, avg_logprob=-2.0),)
    return Segment(
        start=start, end=end, text=text, language=language, avg_logprob=-1.0, steps=3, words=words, alternatives=others
    )


RESULT = Transcript(
    text="the cat sat on a mat it ran see", language="en", language_probability=0.5, duration=9.0, model="tiny",
    segments=(segment("the cat sat", 0.0, 3.0), segment("on a mat it ran", 3.5, 6.0), segment("see", 7.0, 8.0)),
)  # fmt: skip


@pytest.fixture(scope="module", params=["prefix", "joint"])
def asr(request: pytest.FixtureRequest) -> Transcriber:
    """Of a model whose CTC has the tokens as labels, and of one with short labels."""
    return Transcriber(wake(random_model() if request.param == "prefix" else spelling_model()))


@pytest.mark.parametrize(
    "keep",
    [
        {(1, 2): "rug"},
        {(1, 2): "mat", (1, 0): "on"},
        {(1, 1, 3): "the rug she"},
        {(0, 0): "a", (1, 4): "run", (2, 0): "saw"},
    ],
)
@pytest.mark.parametrize("steps", [1, 6])
def test_what_is_kept_is_there_and_what_is_not_touched_is_the_same(asr: Transcriber, keep: Any, steps: int) -> None:
    new = asr.redo(RESULT, noise(9.0), keep=keep, steps=steps)
    touched = {place[0] for place in keep}
    for number, (old, now) in enumerate(zip(RESULT.segments, new.segments, strict=True)):
        if number not in touched:
            assert now is old
            continue
        kept = [text for place, text in sorted(keep.items()) if place[0] == number]
        sure = [w.word for w in now.words if w.probability == 1]
        assert sure == " ".join(kept).split()
        assert now.text.split() == [w.word for w in now.words]
        assert (now.start, now.end, now.language) == (old.start, old.end, old.language)
        assert now.steps <= steps
        times = [t for w in now.words for t in (w.start, w.end)]
        assert times == sorted(times)
        assert old.start <= times[0] <= times[-1] <= old.end
    assert new.text == joined(new.segments)
    assert replace(new, text="", segments=()) == replace(RESULT, text="", segments=())


def test_mandarin_is_kept_by_characters(asr: Transcriber) -> None:
    said = segment("abc", 0.0, 2.0, "zh")  # the small vocabulary has no others
    result = replace(RESULT, segments=(said,), text="abc")
    new = asr.redo(result, noise(2.0), keep={(0, 1): "xy"}).segments[0]
    assert "xy" in new.text.replace(" ", "")


def test_the_rest_is_written_by_what_the_network_hears() -> None:
    model = random_model()
    said = "the cat sat"
    scripted = Model(network=Script(model, [said]), tokenizer=model.tokenizer, config=model.config)  # type: ignore[arg-type]
    pieces = pieces_of(segment("teh dog sit", 0.0, 1.0), [Fix(1, 1, "cat")], model.tokenizer)
    texts = [rewrite(scripted, heard(model, [said]), "en", pieces, steps=n).text for n in (1, 9)]
    assert texts[0] != texts[1] == said
    done = rewrite(scripted, heard(model, [said]), "en", pieces, steps=50)
    assert (done.text, done.language) == (said, "en")
    assert done.steps < 15, "it stops when nothing changes any more"
    assert [w.probability == 1 for w in done.words][1]


@pytest.mark.parametrize("fix", [Fix(0, 0, "a"), Fix(2, 2, "rug"), Fix(1, 3, "b c"), Fix(0, 4, "all new")])
def test_pieces_are_the_text_with_the_fix_in_it(fix: Fix) -> None:
    tokenizer, old = random_model().tokenizer, RESULT.segments[1]
    pieces = pieces_of(old, [fix], tokenizer)
    words = old.text.split()
    words[fix.first : fix.last + 1] = fix.text.split()
    tokens = [t for p in pieces for t in p.tokens]
    assert tokens == tokenizer.encode(" ".join(words)), "as the tokenizer itself would write it"
    assert [p.is_kept for p in pieces] == [False, True, False]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        ({}, "none"),
        ({(3, 0): "a"}, "no segment 3"),
        ({(-1, 0): "a"}, "no segment -1"),
        ({(0, 3): "a"}, "no words 3"),
        ({(0, 2, 1): "a"}, "no words 2 to 1"),
        ({(0, 1): " ."}, "letter"),
        ({(0, 0, 1): "a", (0, 1): "b"}, "word 1 of segment 0 is fixed twice"),
    ],
)
def test_what_the_transcript_has_not_cannot_be_kept(keep: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        fixes(RESULT, keep)


def test_a_segment_that_no_window_was_cannot_be_redone() -> None:
    for odd, reason in ((segment("il gatto", 0.0, 3.0, "it"), "'it'"), (segment("the cat", 0.0, 31.0), "30 s")):
        with pytest.raises(OptionError, match=reason):
            fixes(replace(RESULT, segments=(odd,)), {(0, 0): "a"})


def test_the_sound_of_segments_is_cut_out_in_one_reading(tmp_path: Path) -> None:
    samples = noise(9.0)
    parts = cut_out(samples, RESULT.segments)
    for part, one in zip(parts, RESULT.segments, strict=True):
        np.testing.assert_array_equal(part, samples[round(one.start * 16_000) : round(one.end * 16_000)])
    with pytest.raises(OptionError, match=r"ends at 5\.0 s"):
        cut_out(samples[: 5 * SAMPLE_RATE_HZ], RESULT.segments)


def test_a_transcript_comes_back_from_its_dictionary() -> None:
    whole = replace(RESULT, gaps=())
    assert Transcript.from_dict(json.loads(json.dumps(whole.to_dict()))).to_dict() == whole.to_dict()
    for wrong in ({}, {"segments": [1]}, whole.to_dict() | {"segments": [{"words": []}]}, {"segments": [], "gaps": []}):
        with pytest.raises(OptionError, match="no transcript"):
            Transcript.from_dict(wrong)


@pytest.fixture
def call(asr: Transcriber, tmp_path: Path) -> list[str]:
    save(tmp_path / "model", asr.model)
    soundfile.write(tmp_path / "talk.wav", noise(9.0), SAMPLE_RATE_HZ)
    (tmp_path / "talk.json").write_text(json.dumps(RESULT.to_dict()), encoding="utf-8")
    return ["redo", str(tmp_path / "talk.json"), "--model", str(tmp_path / "model")]


def test_the_command_lists_words_and_writes_the_new_transcript(
    call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0:0=the 0:1=cat 0:2=sat",
        "1:0=on 1:1=a 1:2=mat 1:3=it 1:4=ran",
        "2:0=see",
    ]
    sets = ["--audio", str(tmp_path / "talk.wav"), "--set", "1:1-2=the rug", "--set", "1:4"]
    assert cli.main([*call, *sets, "--steps", "1"]) == 0
    new = json.loads(capsys.readouterr().out)
    assert [w["word"] for w in new["segments"][1]["words"] if w["probability"] == 1] == ["the", "rug", "ran"]
    assert new["segments"][0] == RESULT.to_dict()["segments"][0]
    assert new["segments"][1]["steps"] == 1
    out = tmp_path / "new.txt"
    assert cli.main([*call, *sets, "--steps", "1", "--format", "txt", "--output", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == new["text"] + "\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--set", "0:1=dog"], "--audio"),
        (["--audio", "x.wav", "--set", "one"], "'one'"),
        (["--audio", "x.wav", "--set", "0:9"], "0:9"),
        (["--audio", "x.wav", "--set", "9:0"], "9:0"),
        (["--audio", "x.wav", "--set", "0:0=a", "--set", "0:0=b"], "0:0 is set twice"),
    ],
)
def test_a_wrong_call_is_told(
    call: list[str], words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*call, *words]) == 2
    assert reason in capsys.readouterr().err
    assert cli.main(["redo", __file__]) == 2
    assert "test_redo.py can't be read as JSON" in capsys.readouterr().err


def test_the_languages_of_segments_are_those_of_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = random_model(), []
    prefill = model.network.prefill
    monkeypatch.setattr(model.network, "prefill", lambda s, codes: seen.append(codes) or prefill(s, codes))
    result = replace(RESULT, segments=(segment("ein hund", 0.0, 1.0, "de"),), text="ein hund")
    Transcriber(model).redo(result, noise(1.0), keep={(0, 0): "ein"}, steps=1)
    assert [told.tolist() for told in seen] == [[list(LANGUAGES).index("de")]]
