"""The rules of the house, read off the source: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffasr

SOURCE = Path(diffasr.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
GROUND = {"errors", "audio", "text", "letters", "places"}
TOP = {"cli", "__main__", "__init__", "server", "batch"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or inside a function, as dotted names below the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffasr":
            inside = (node.module or "").removeprefix("diffasr").removeprefix(".")
            found |= {f"{inside}.{a.name}".strip(".") for a in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("diffasr.") for a in node.names if a.name.startswith("diffasr.")}
    return found


IMPORTS = {name_of(path): imports_of(path) for path in FILES}


def parts_used(module: str) -> set[str]:
    """The first names of what a module imports: files and folders directly below the package."""
    return {name.split(".")[0] for name in IMPORTS[module]} - {"__version__"}


def test_the_ground_stands_on_itself() -> None:
    for module in GROUND:
        assert parts_used(module) <= GROUND, module
    assert parts_used("errors") == set()


@pytest.mark.parametrize(("layer", "other"), [("model", "diffusion"), ("diffusion", "model")])
def test_model_and_diffusion_do_not_know_each_other(layer: str, other: str) -> None:
    for module in [m for m in IMPORTS if m.startswith(f"{layer}.")]:
        assert parts_used(module) <= GROUND | {layer}, f"{module} must not import {other} or anything above"


def test_records_and_formats_stand_on_the_ground() -> None:
    for module in [m for m in IMPORTS if m == "transcript" or m.split(".")[0] == "formats"]:
        assert parts_used(module) <= GROUND | {"transcript", "formats"}, module


def test_nobody_imports_the_top() -> None:
    for module in IMPORTS:
        if module.split(".")[0] not in TOP:
            assert not parts_used(module) & TOP, module


def test_only_those_above_join_the_two() -> None:
    joiners = {m.split(".")[0] for m in IMPORTS if {"model", "diffusion"} <= parts_used(m)}
    writers = {"decode", "canvases", "asking", "ballots", "redo", "runtime", "torched", "whole"}
    assert joiners <= writers | {"comparisons", "transcribe", "train", "evaluate"} | TOP


def test_every_import_of_ours_exists() -> None:
    for module, names in IMPORTS.items():
        for name in names:
            place = SOURCE.joinpath(*name.split("."))
            found = place.with_suffix(".py").is_file() or place.is_dir() or place.parent.with_suffix(".py").is_file()
            assert found or place.parent.is_dir(), f"{module} imports {name}"


@pytest.mark.parametrize("call", ["-c import diffasr", "-m diffasr --help", "-m diffasr train --help"])
def test_help_comes_before_torch(call: str) -> None:
    flag, words = call[:2], call[3:]
    code = words if flag == "-c" else "\n".join(
        [
            "import runpy",
            f"sys.argv = {words.split()!r}",
            "try: runpy.run_module('diffasr', run_name='__main__')",
            "except SystemExit as stop: assert not stop.code, stop.code",
        ]
    )  # fmt: skip
    heavy = "{'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)"
    check = f"import sys\n{code}\nprint('loaded:', sorted({heavy} & {{'torch', 'transformers'}}))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=SOURCE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert ("usage: diffasr" in done.stdout) == (flag == "-m")


def test_public_names_are_few_and_sorted_and_real() -> None:
    names = diffasr.__all__
    assert len(names) <= 15
    assert names == sorted(names)
    assert all(getattr(diffasr, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = diffasr.nonsense


def lines_of(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


@pytest.mark.parametrize("path", [*FILES, *sorted(TESTS.glob("*.py"))], ids=lambda p: p.name)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert lines_of([path]) <= 400


def test_there_is_a_line_of_test_for_two_of_source() -> None:
    assert lines_of(sorted(TESTS.glob("*.py"))) >= lines_of(FILES) / 2


def test_base_classes_are_the_four_of_the_style_sheet() -> None:
    allowed = {"nn.Module", "Module", "Exception", "Protocol", "DiffasrError", "ValueError", "OSError"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert {ast.unparse(base) for base in node.bases} <= allowed, f"{path.name}: {node.name}"
