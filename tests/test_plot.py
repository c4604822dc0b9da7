"""The same figures make the same picture, other figures another; nothing is drawn of what was not measured."""

import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import both, row

from diffasr.errors import OptionError
from diffasr.evaluate.plot import draw
from diffasr.evaluate.report import build_report


def test_pictures_depend_on_the_figures_alone(tmp_path: Path) -> None:
    rows = both("seeded-8", "ctc") + [row(n, "seeded-2", "x") for n in range(8)] + [row(0, "whisper", "y")]
    pictures = {}
    for name, chosen in (("a", rows), ("b", rows), ("c", rows[:-1])):
        (tmp_path / name).mkdir()
        pictures[name] = [path.read_bytes() for path in draw(build_report(chosen, "basic", {}), tmp_path / name)]
    assert pictures["a"] == pictures["b"]
    assert all(a != c for a, c in zip(pictures["a"], pictures["c"], strict=True))


def test_systems_that_differ_in_steps_alone_are_one_curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[int, str]] = []
    plain = Axes.plot

    def plot(self: Axes, places: list[float], *words: Any, **named: Any) -> Any:
        drawn.append((len(places), str(named.get("label"))))
        return plain(self, places, *words, **named)

    monkeypatch.setattr(Axes, "plot", plot)
    rows = [
        row(0, f"seeded-{steps}", "x") | {"system": f"seeded-{steps}{what}"}
        for what in ("", " votes=3")
        for steps in (2, 8)
    ]
    draw(build_report(rows, "basic", {}), tmp_path)
    assert drawn.count((2, "seeded")) == drawn.count((2, "seeded votes=3")) == 2, "by steps and by speed"


def test_one_system_and_two_sets_are_enough(tmp_path: Path) -> None:
    rows = [row(0, "ctc", "x"), row(0, "ctc", "x", set="other", seconds={})]
    made = [path.stem for path in draw(build_report(rows, "basic", {}), tmp_path)]
    assert made == ["error-by-steps", "error-by-speed", "error-by-language", "error-by-duration"]


TRAINING = {
    "stages": [{"name": "ctc", "after": 0, "steps": 2}, {"name": "denoise", "after": 2, "steps": 2}],
    "losses": {"ctc": [[1, 9.0], [2, 4.0]], "ar": [[3, 3.0], [4, 2.0]], "diffusion": [[3, 3.0], [4, 2.5]]},
    "rates": {"cer_ctc": [[2, 0.5], [4, 0.5]], "cer_diffusion": [[4, 0.3]]},
}


def test_drafts_confidence_and_training_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    told = {"drafts": ["xone two", "one two three"], "words": [["one", 0.9], ["two", 0.3]]}
    rows = [row(2, "seeded-8", "one two three", **told), row(3, "seeded-8", "x", set="other")]
    pictures = {}
    for name, chosen, training in (
        ("a", rows, TRAINING),
        ("b", rows, TRAINING),
        ("c", [rows[0] | {"drafts": ["x"], "words": [["one", 0.2]]}, rows[1]], TRAINING | {"rates": {}}),
    ):
        (tmp_path / name).mkdir()
        made = draw(build_report(chosen, "basic", {}, training=training), tmp_path / name)
        pictures[name] = {path.stem: path.read_bytes() for path in made}
    names = ["draft-error-by-step", "reliability", "training"]
    assert list(pictures["a"])[-3:] == names
    assert pictures["a"] == pictures["b"]
    assert all(pictures["a"][name] != pictures["c"][name] for name in names)
    few = draw(build_report([row(0, "seeded-8", "x"), row(0, "seeded-2", "x", **told)], "basic", {}), tmp_path)
    assert not {path.stem for path in few} & set(names), "only headline systems are drawn"


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"diffasr\[evaluate\]"):
        draw(build_report([row(0, "ctc", "x")], "basic", {}), tmp_path)
