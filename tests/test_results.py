"""The README's tables are those of the reports, and the script says so when they are not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import both

from diffasr.evaluate.report import build_report

ROOT = Path(__file__).parents[1]
BEFORE, AFTER = "text\n\n<!-- results: docs/a/results.json -->\n", "<!-- end of results -->\n\nmore\n"


def call(*words: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "scripts" / "results"), *words]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_it_writes_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "docs" / "a").mkdir(parents=True)
    report = build_report(both("seeded-8", "ctc"), "basic", {})
    (tmp_path / "docs" / "a" / "results.json").write_text(json.dumps(report), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(BEFORE + "| old |\n" + AFTER, encoding="utf-8")
    words = ["--readme", str(readme)]
    checked = call("--check", *words)
    assert checked.returncode == 1
    assert "README.md differs" in checked.stderr
    assert "| old |" in readme.read_text(encoding="utf-8"), "a check changes nothing"
    assert call(*words).returncode == 0
    assert call("--check", *words).returncode == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(BEFORE + "| dev: CER in percent (normaliser: basic) | en | mean | RTFx |\n")
    assert text.endswith(AFTER)
    assert "| diffusion from the CTC text, 8 steps | 0.0 | 0.0 | 2.0 |" in text
    assert "| CTC-greedy | 11" in text
    readme.write_text(text.replace("| 2.0 |", "| 9.9 |"), encoding="utf-8")
    assert call("--check", *words).returncode == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    for text, word in ((BEFORE + AFTER, "results.json"), ("nothing", "results: PATH")):
        readme.write_text(text, encoding="utf-8")
        done = call("--readme", str(readme))
        assert done.returncode == 2
        assert word in done.stderr


def test_the_readme_agrees_with_its_reports() -> None:
    named = re.findall(r"<!-- results: (\S+) -->", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named
    if not all((ROOT / path).is_file() for path in named):
        pytest.skip(f"not measured yet: {named}")
    done = call("--check")
    assert done.returncode == 0, done.stderr
