"""Rendering keeps every letter, and other people's readers get texts and times back; writing is all or nothing."""

import csv
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid

from diffasr.errors import OptionError
from diffasr.formats import FORMATS, LineShape, render, write_text_atomically
from diffasr.transcript import Segment, Transcript, Word

HOSTILE = [
    "a --> b",
    "<i>x</i> & y",
    "{\\an8}hm [la:la] <00:01.00>",
    'say "no"',
    "tab\there\n\n\n1\r\n",
    ";; x",
    "你好，再见。",
]
LRC_LINE = re.compile(r"\[(\d{2,}):(\d\d)\.(\d\d)\](.*)")


def make_transcript(text: str) -> Transcript:
    segment = Segment(start=0.0, end=2.0, text=text, language="fr", avg_logprob=-0.1, steps=8)
    return Transcript(
        text=text, language="fr", language_probability=0.9, duration=2.0, segments=(segment,), model="mini"
    )


def of_segments(*parts: tuple[float, float, str], duration: float = 0.0) -> Transcript:
    """Segments without words: each is one cue if it is short."""
    segments = tuple(
        Segment(start=start, end=end, text=text, language="en", avg_logprob=-0.1, steps=8) for start, end, text in parts
    )
    return Transcript(
        text=" ".join(s.text for s in segments),
        language="en",
        language_probability=None,
        duration=max([duration, *(s.end for s in segments)]),
        segments=segments,
        model="mini",
    )


def of_words(*words: tuple[str, float, float]) -> Transcript:
    spoken = tuple(Word(word=word, start=start, end=end, probability=0.75) for word, start, end in words)
    text = " ".join(word for word, _, _ in words)
    segment = Segment(start=0.0, end=9.0, text=text, language="en", avg_logprob=-0.1, steps=8, words=spoken)
    return Transcript(
        text=text, language="en", language_probability=None, duration=9.0, segments=(segment,), model="mini"
    )


def read_textgrid(text: str, folder: Path) -> Any:
    path = folder / "out.TextGrid"
    path.write_text(text, encoding="utf-8")
    return textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")


def read_lrc(text: str) -> list[tuple[int, str]]:
    """The lines of a file and their times in hundredths; a reader that only knows stamps."""
    found = [LRC_LINE.fullmatch(line) for line in text.splitlines()]
    return [(int(m[1]) * 6000 + int(m[2]) * 100 + int(m[3]), m[4]) for m in found if m]


def read_ctm(text: str) -> list[tuple[float, float, str, float]]:
    rows = [line.split(" ") for line in text.splitlines()]
    assert all(len(row) == 6 and row[:2] == ["recording", "1"] for row in rows)
    return [(float(row[2]), float(row[3]), row[4], float(row[5])) for row in rows]


def seconds_of(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


@given(st.text(st.characters(codec="utf-8")))
def test_json_is_a_round_trip(text: str) -> None:
    transcript = make_transcript(text)
    rendered = render(transcript, "json")
    assert json.loads(rendered) == transcript.to_dict()
    assert rendered.endswith("}\n")


def test_letters_stay_readable() -> None:
    assert "déjà vu, 你好" in render(make_transcript("déjà vu, 你好"), "json")


@pytest.mark.parametrize("text", ["", "bonjour", "bonjour\n", "deux\nlignes"])
def test_txt_is_the_text_and_one_newline(text: str) -> None:
    assert render(make_transcript(text), "txt") == text.removesuffix("\n") + "\n"


def test_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"txt, json, srt, .*, got 'doc'"):
        render(make_transcript("bonjour"), "doc")  # type: ignore[arg-type]


TIMES = st.lists(st.one_of(st.floats(0, 90), st.floats(0, 359_998), st.sampled_from([59.9996, 3599.9995])), max_size=9)


@settings(max_examples=40, deadline=None)
@given(TIMES)
def test_every_reader_gets_the_same_times(times: list[float]) -> None:
    edges = sorted(times)
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    transcript = of_segments(*((start, end, "hm") for start, end in pairs))
    subtitles = [(e.start, e.end) for e in pysubs2.SSAFile.from_string(render(transcript, "srt"), format_="srt")]
    captions = webvtt.from_string(render(transcript, "vtt"))
    rows = list(csv.DictReader(io.StringIO(render(transcript, "tsv")), dialect="excel-tab"))
    assert [(round(seconds_of(c.start) * 1000), round(seconds_of(c.end) * 1000)) for c in captions] == subtitles
    assert [(int(row["start"]), int(row["end"])) for row in rows] == subtitles
    assert [(s, round(s + d, 3)) for s, d, _, _ in read_ctm(render(transcript, "ctm"))] == [
        (start / 1000, end / 1000) for start, end in subtitles
    ]
    lines = read_lrc(render(transcript, "lrc"))
    for (start, end), (begin, until), (at, _) in zip(subtitles, pairs, lines, strict=True):
        assert end > start
        assert abs(start - begin * 1000) <= len(pairs) and abs(end - until * 1000) <= len(pairs)
        assert abs(at - start / 10) <= len(pairs)


@settings(max_examples=40, deadline=None)
@given(TIMES)
def test_no_field_of_a_time_runs_over(times: list[float]) -> None:
    transcript = of_segments(*((t, t, "hm") for t in sorted(times)))
    for format in ("srt", "vtt", "lrc"):
        for clock in re.findall(r"\d+(?::\d+)+[.,]\d+", render(transcript, format)):
            *_, minutes, seconds, fraction = [int(n) for n in re.split("[:.,]", clock)]
            assert seconds < 60 and (format == "lrc" or minutes < 60)
            assert fraction < (100 if format == "lrc" else 1000)


def test_just_below_a_minute_is_a_minute() -> None:
    transcript = of_segments((59.9996, 359_999.9989, "hm"))
    assert "00:01:00,000 --> 99:59:59,999\n" in render(transcript, "srt")
    assert "[01:00.00]hm" in render(transcript, "lrc")
    assert "recording 1 60.000 359939.999 hm" in render(transcript, "ctm")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back(text: str, tmp_path: Path) -> None:
    transcript = of_segments((0.0, 1.0, "first"), (1.0, 2.0, text), (2.0, 3.0, "last"))
    flat = " ".join(text.split())
    tags, brackets = str.maketrans("<>{}", "‹›()"), str.maketrans("<>[]", "‹›()")
    subtitles = pysubs2.SSAFile.from_string(render(transcript, "srt"), format_="srt")
    assert [e.plaintext for e in subtitles] == ["first", flat.translate(tags), "last"]
    captions = webvtt.from_string(render(transcript, "vtt"))
    assert [html.unescape(c.raw_text) for c in captions] == ["first", flat, "last"]
    rows = list(csv.reader(io.StringIO(render(transcript, "tsv")), dialect="excel-tab"))
    assert [row[2] for row in rows] == ["text", "first", flat, "last"]
    grid = read_textgrid(render(transcript, "textgrid"), tmp_path)
    assert [e.label for e in grid.getTier("segments").entries] == ["first", flat, "last"]
    assert "".join(e.label for e in grid.getTier("words").entries).replace(" ", "") == f"first{flat}last".replace(
        " ", ""
    )
    assert [line for _, line in read_lrc(render(transcript, "lrc"))] == ["first", flat.translate(brackets), "last"]
    assert "".join(row[2] for row in read_ctm(render(transcript, "ctm"))) == f"first{flat}last".replace(" ", "")


@pytest.mark.parametrize(
    "transcript",
    [of_segments(), of_segments(duration=3.0), of_segments((0.0, 2.0, " \n"))],
    ids=["0 s", "3 s", "blank"],
)
def test_nobody_speaking_is_a_valid_file(transcript: Transcript, tmp_path: Path) -> None:
    assert len(pysubs2.SSAFile.from_string(render(transcript, "srt"), format_="srt")) == 0
    assert len(webvtt.from_string(render(transcript, "vtt"))) == 0
    assert render(transcript, "tsv") == "start\tend\ttext\n"
    assert render(transcript, "ctm") == ""
    grid = read_textgrid(render(transcript, "textgrid"), tmp_path)
    assert [[e.label for e in grid.getTier(name).entries] for name in ("segments", "words")] == [[""], [""]]
    assert read_lrc(render(transcript, "lrc")) == []
    assert render(transcript, "lrc").startswith("[re:diffasr]\n[length:00:0")
    assert render(transcript, "txt").strip() == ""
    assert json.loads(render(transcript, "json"))["duration"] == transcript.duration


def test_textgrid_covers_the_recording_in_both_tiers(tmp_path: Path) -> None:
    transcript = of_words(("so", 1.0, 1.5), ('"it"', 1.5, 2.0), ("goes", 4.0, 5.0))
    grid = read_textgrid(render(transcript, "textgrid"), tmp_path)
    assert (grid.minTimestamp, grid.maxTimestamp) == (0.0, 9.0)
    assert [tuple(e) for e in grid.getTier("segments").entries] == [(0.0, 9.0, 'so "it" goes')]
    assert [tuple(e) for e in grid.getTier("words").entries] == [
        (0.0, 1.0, ""), (1.0, 1.5, "so"), (1.5, 2.0, '"it"'), (2.0, 4.0, ""), (4.0, 5.0, "goes"), (5.0, 9.0, ""),
    ]  # fmt: skip


def test_ctm_has_a_line_a_word_with_its_confidence() -> None:
    transcript = of_words(("so", 1.0, 1.5), ("va", 1.5, 2.0), ("?", 2.0, 2.25))
    assert read_ctm(render(transcript, "ctm")) == [(1.0, 0.5, "so", 0.75), (1.5, 0.75, "va?", 0.75)]


SONG = of_words(("so", 1.0, 1.5), ("it", 1.5, 2.0), ("<goes>", 2.5, 3.0))


def test_highlight_underlines_each_word_while_it_is_said() -> None:
    marked = LineShape(highlight_words=True, max_words_per_line=2, max_line_count=2)
    subtitles = pysubs2.SSAFile.from_string(render(SONG, "srt", marked), format_="srt")
    assert [(e.start, e.end) for e in subtitles] == [(1000, 1500), (1500, 2500), (2500, 3000)]
    assert {e.plaintext for e in subtitles} == {"so it\n‹goes›"}, "the words stay where they are"
    assert [re.findall(r"{\\u1}(.*?){\\u0}", e.text) for e in subtitles] == [["so"], ["it"], ["‹goes›"]]
    captions = list(webvtt.from_string(render(SONG, "vtt", marked)))
    assert [re.findall("<u>(.*?)</u>", c.raw_text) for c in captions] == [["so"], ["it"], ["&lt;goes&gt;"]]
    assert "<u>" not in render(SONG, "srt") + render(SONG, "vtt")


def test_highlight_stamps_each_word_of_a_lyric() -> None:
    (line,) = read_lrc(render(SONG, "lrc", LineShape(highlight_words=True)))
    assert line == (100, "<00:01.00>so <00:01.50>it <00:02.50>‹goes›<00:03.00>")
    assert read_lrc(render(SONG, "lrc")) == [(100, "so it ‹goes›")]


def test_lines_of_a_lyric_are_those_of_the_shape_and_never_share_a_stamp() -> None:
    assert [text for _, text in read_lrc(render(SONG, "lrc", LineShape(max_line_width=5)))] == ["so it", "‹goes›"]
    crowd = of_segments(*((1.0 + n / 1000, 1.001 + n / 1000, "hm") for n in range(5)))
    assert [at for at, _ in read_lrc(render(crowd, "lrc"))] == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("format", FORMATS)
def test_a_shape_matters_to_subtitles_and_tables_only(format: Any) -> None:
    changed = render(SONG, format, LineShape(max_words_per_line=1)) != render(SONG, format)
    assert changed == (format in {"srt", "vtt", "tsv", "lrc"})


def test_lines_of_a_cue_are_lines_of_the_file() -> None:
    shape = LineShape(max_line_width=5, max_line_count=2)
    assert "\nso it\n&lt;goes&gt;\n" in render(SONG, "vtt", shape)
    assert [e.plaintext for e in pysubs2.SSAFile.from_string(render(SONG, "srt", shape))] == ["so it\n‹goes›"]
    assert "so it <goes>" in render(SONG, "tsv", shape)


@given(st.text(st.characters(codec="utf-8")))
def test_file_holds_exactly_the_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("formats") / "out.txt"
    write_text_atomically(path, "old text")
    write_text_atomically(path, text)
    assert path.read_bytes() == text.encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["out.txt"], "no draft may stay behind"


def test_failure_keeps_the_old_file_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old text")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OptionError, match="No space left on device"):
        write_text_atomically(path, "new text")
    assert path.read_text() == "old text"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/out.txt", "."])
def test_bad_place_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"cannot write .*has room"):
        write_text_atomically(tmp_path / name, "text")
    assert list(tmp_path.iterdir()) == []


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "out.txt", tmp_path / "link.txt"
    path.write_text("old text")
    path.chmod(0o640)
    link.symlink_to(path)
    write_text_atomically(link, "new text")
    assert link.is_symlink()
    assert path.read_text() == "new text"
    assert path.stat().st_mode & 0o777 == 0o640
