"""The page is read back by a parser: texts are whole and escaped, colours are the edits, players find their files."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from test_report import WORDS, row

from diffasr.evaluate.score import word_counts
from diffasr.evaluate.worst import MOST, WORST, worst_page

EMPTY_TAGS = {"meta"}


class Page(HTMLParser):
    """Open elements with their attributes, and what text stood in which class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.players: list[str] = []
        self.kinds: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()
        assert not self.stack, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.seen.append(tag)
        if tag == "audio":
            assert "controls" in said
            self.players.append(said["src"])
        if said.get("class", "").startswith("pair "):
            self.kinds.append(said["class"].removeprefix("pair "))
        if tag not in EMPTY_TAGS:
            self.stack.append((tag, said.get("class", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.stack and data.strip():
            self.texts.append((self.stack[-1][1] or self.stack[-1][0], data))

    def of(self, kind: str) -> list[str]:
        return [text for name, text in self.texts if name == kind]


def page_of(rows: list[dict[str, object]], folder: Path, headlines: tuple[str, ...] = ("ctc", "seeded-8")) -> Page:
    text = worst_page(rows, headlines, "basic", folder)
    assert text is not None
    return Page(text)


def test_both_texts_are_whole_and_the_colours_are_the_edits(tmp_path: Path) -> None:
    said = "the bat sat right down"
    rows = [row(0, "seeded-8", said, reference="The cat sat down, now!"), row(0, "ctc", "other <words>")]
    page = page_of(rows, tmp_path)
    assert page.of("reference") == ["the", "cat", "sat", "down", "now"]
    assert page.of("hypothesis") == said.split()
    counts = word_counts("the cat sat down now", said)
    wrong = [page.kinds.count(kind) for kind in ("substitution", "insertion", "deletion")]
    assert sum(wrong) == counts.errors
    assert page.kinds.count("hit") >= 3
    assert page.of("dd") == ["The cat sat down, now!", said, "other <words>"], "others stand below, as written"
    assert f"WER {100 * counts.rate:.1f} % ({counts.errors} of {counts.size})" in " ".join(page.of("dt"))


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = "</p><script>alert(1)</script>&amp;\"'"
    rows = [row(0, "seeded-8", evil, reference=evil + "x", set=evil, id=evil, audio=f"/a/{evil}.wav")]
    rows.append(row(0, "ctc", evil, set=evil, id=evil))
    text = worst_page(rows, ("ctc", "seeded-8"), "none", tmp_path) or ""
    page = Page(text)
    assert "script" not in page.seen
    assert page.of("dd") == [evil + "x", evil, evil]
    assert "http://" not in text and "https://" not in text, "nothing from elsewhere"


def test_players_find_their_files_from_where_the_page_stands(tmp_path: Path) -> None:
    clip = tmp_path / "sounds" / "a b#ü.wav"
    out = tmp_path / "runs" / "out"
    rows = [row(0, "seeded-8", "x", audio=str(clip)), row(1, "seeded-8", "x")]
    page = page_of(rows, out)
    (source,) = page.players
    assert (out / unquote(source)).resolve() == clip.resolve()
    assert any("data set" in text for text in page.of("p"))


def test_the_worst_come_first_and_the_right_not_at_all(tmp_path: Path) -> None:
    rows = [row(n, "seeded-8", WORDS[0][n:], reference=WORDS[0]) for n in range(4)]
    page = page_of(rows, tmp_path)
    assert page.of("h2") == ["dev 3", "dev 2", "dev 1"]
    many = [row(n, "seeded-8", "", reference="x" * (n + 1)) for n in range(MOST + 5)]
    assert len(page_of(many, tmp_path).of("h2")) == MOST


@pytest.mark.parametrize(
    ("headlines", "chosen"),
    [(["ctc", "diffusion-8", "seeded-8"], "seeded-8"), (["ctc", "vote-8", "diffusion-8"], "diffusion-8"),
     (["vote-8"], "vote-8"), (["ctc"], None)],
)  # fmt: skip
def test_the_system_that_revises_is_shown(headlines: list[str], chosen: str | None, tmp_path: Path) -> None:
    rows = [row(0, name, "x") for name in ("ctc", "diffusion-8", "seeded-8", "vote-8")]
    text = worst_page(rows, headlines, "basic", tmp_path)
    assert (text is None) if chosen is None else f"with most errors: {chosen}</h1>" in (text or "")


def test_mandarin_is_aligned_by_letters_and_silence_has_no_rate(tmp_path: Path) -> None:
    rows = [row(0, "seeded-8", "汉鱼", language="zh", reference="漢語"), row(1, "seeded-8", "noise", reference="...")]
    page = page_of(rows, tmp_path)
    assert page.of("hypothesis") == ["noise", "汉", "鱼"]
    assert any("5 characters where nothing was said" in text for text in page.of("p"))
    assert WORST.endswith(".html")
