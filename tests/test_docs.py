"""What docs/26b.md and the recipes' pages tell to type can be typed: commands parse, scripts have the options named."""

import re
import shlex
from pathlib import Path

import pytest

from diffasr import cli
from diffasr.train.stages import Recipe, Stage

ROOT = Path(__file__).parent.parent
PAGES = ["docs/26b.md", "recipes/gemma-26b/README.md", "recipes/whisper/README.md"]


def commands(page: str) -> list[list[str]]:
    """Every command of a page, in blocks and in sentences, but for those with something left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    calls = (shlex.split(line, comments=True) for line in lines if "…" not in line)
    return [words for words in calls if words]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_ours_parse(page: str) -> None:
    calls = [words[words.index("diffasr") + 1 :] for words in commands(page)
             if words[:1] == ["diffasr"] or words[:3] == ["python", "-m", "diffasr"] or
             (words[:1] in (["torchrun"], ["accelerate"]) and "diffasr" in words)]  # fmt: skip
    assert calls or "cost.py" in (ROOT / page).read_text(encoding="utf-8")
    for call in calls:
        cli.parse(call)  # leaves with exit code 2 where it can't


@pytest.mark.parametrize("page", PAGES)
def test_scripts_are_there_and_have_the_options(page: str) -> None:
    for words in commands(page):
        if words[0] != "python" or not words[1].endswith(".py"):
            continue
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        missing = [w for w in words[2:] if w.startswith("--") and f'"{w}"' not in script]
        assert not missing, f"{page}: {words[1]} has no {missing}"


def test_settings_that_the_page_names_exist() -> None:
    text = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    known = set(Recipe.__dataclass_fields__) | set(Stage.__dataclass_fields__)
    named = set(re.findall(r"`(\w+) = [^`]+`", text))
    assert named and named <= known
