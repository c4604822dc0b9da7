"""What is on disk after any interruption can be gone on with; what belongs to another evaluation is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffasr.errors import OptionError
from diffasr.evaluate.folder import ROWS, RUN, Folder, key_of, machine_facts, peak_memory_mib, read_facts, read_rows

SAME: dict[str, Any] = {"model": "m", "sets": [{"name": "dev", "clips": 2}], "batch": 1}
SYSTEMS: dict[str, Any] = {"ctc": {"decoder": "ctc", "steps": None}}


def row(clip: str, system: str = "ctc", seed: int | None = None) -> dict[str, Any]:
    return {
        "system": system, "seed": seed, "set": "dev", "id": clip, "language": "en", "reference": "ä", "hypothesis": "b",
        "duration": 1.0, "seconds": {}, "decoder": "ctc", "steps": None,
    }  # fmt: skip


def opened(place: Path, identity: dict[str, Any] = SAME, systems: dict[str, Any] = SYSTEMS) -> Folder:
    return Folder(place, identity, systems, {"date": "today"})


def test_every_row_is_on_disk_before_the_next_is_made(tmp_path: Path) -> None:
    folder = opened(tmp_path / "a" / "b")
    for number, clip in enumerate("xyz", 1):
        folder.append([row(clip)])
        assert read_rows(tmp_path / "a" / "b") == [row(c) for c in "xyz"[:number]]
    assert folder.done == {("ctc", None, "dev", c) for c in "xyz"}
    folder.close()


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    folder = opened(tmp_path)
    folder.append([row("x")])
    folder.append([row("y", seed=1)])
    folder.close()
    whole = (tmp_path / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(whole[:-cut])
    again = opened(tmp_path)
    assert again.done == {key_of(row("x"))}
    again.append([row("y", seed=1)])
    again.close()
    assert (tmp_path / ROWS).read_bytes() == whole


@pytest.mark.parametrize(
    ("identity", "systems", "word"),
    [
        (SAME | {"model": "other"}, SYSTEMS, 'model is "m" there and "other" here'),
        (SAME | {"sets": []}, SYSTEMS, "sets is"),
        (SAME | {"batch": 2}, SYSTEMS, "batch is 1 there and 2 here"),
        (SAME, {"ctc": {"decoder": "ctc", "steps": 1}}, "ctc is"),
    ],
)
def test_rows_of_another_evaluation_are_refused(tmp_path: Path, identity, systems, word) -> None:  # type: ignore[no-untyped-def]
    opened(tmp_path).close()
    before = (tmp_path / RUN).read_bytes()
    with pytest.raises(OptionError, match=word):
        opened(tmp_path, identity, systems)
    assert (tmp_path / RUN).read_bytes() == before


def test_more_systems_may_join_and_sessions_that_wrote_something_add_up(tmp_path: Path) -> None:
    for systems, clip in ((SYSTEMS, "x"), ({"ar": {"decoder": "ar"}}, "y"), (SYSTEMS, "")):
        folder = opened(tmp_path, systems=systems)
        if clip:
            folder.append([row(clip)])
        if clip == "y":
            folder.note(peak_mib={"diffasr": 3})
        folder.close()
    facts = read_facts(tmp_path)
    assert facts["systems"] == SYSTEMS | {"ar": {"decoder": "ar"}}
    assert facts["sessions"] == [{"date": "today"}, {"date": "today", "peak_mib": {"diffasr": 3}}]
    assert read_facts(tmp_path / ROWS) == facts


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no raw rows"):
        read_rows(tmp_path)
    (tmp_path / "r.jsonl").write_text(json.dumps(row("x")) + '\n{"a": 1}\n', encoding="utf-8")
    with pytest.raises(OptionError, match="line 2"):
        read_rows(tmp_path / "r.jsonl")
    for lacking in ("decoder", "steps"):
        rest = {name: value for name, value in row("x").items() if name != lacking}
        (tmp_path / "r.jsonl").write_text(json.dumps(rest) + "\n", encoding="utf-8")
        with pytest.raises(OptionError, match=f"line 1 .*{lacking}"):
            read_rows(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(OptionError, match="no whole row"):
        read_rows(tmp_path / "r.jsonl")
    with pytest.raises(OptionError, match="can't be made"):
        opened(tmp_path / "r.jsonl" / "x")
    (tmp_path / ROWS).write_text(json.dumps(row("x")) + "\n", encoding="utf-8")
    with pytest.raises(OptionError, match="nobody knows"):
        opened(tmp_path)


def test_the_machine_is_described() -> None:
    facts = machine_facts("cpu", 3)
    assert facts["threads"] == 3
    assert facts["cpu"]
    assert set(facts["versions"]) == {"python", "diffasr", "torch", "onnxruntime"}
    json.dumps(facts)
    assert peak_memory_mib() > 10
