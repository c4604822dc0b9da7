"""The folder of an evaluation: raw rows as they come, and what they were made with.

``hypotheses.jsonl`` holds a row a line, written at once, so that an interrupted run goes on where it stopped.
``run.json`` says which model, sets and settings the rows belong to; rows of others are refused.
"""

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from diffasr import __version__
from diffasr.errors import OptionError
from diffasr.formats import write_text_atomically

ROWS, RUN = "hypotheses.jsonl", "run.json"
Row = dict[str, Any]
Key = tuple[str, int | None, str, str]


def key_of(row: Mapping[str, Any]) -> Key:
    """What makes a row one of its kind: system, seed, set and clip."""
    return row["system"], row["seed"], row["set"], row["id"]


def read_rows(place: str | os.PathLike[str]) -> list[Row]:
    """All whole rows of a folder or of a JSONL file; raises OptionError where there are none or one is malformed."""
    path = Path(place) / ROWS if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise OptionError(f"no raw rows at {path}: name a folder that `diffasr evaluate` wrote, or its {ROWS}")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what has no line end was cut short
        try:
            row = json.loads(line)
            key_of(row), row["language"], row["reference"], row["hypothesis"], row["duration"], row["seconds"]
            row["decoder"], row["steps"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{path} line {number} is not a row of `diffasr evaluate`: {error!r}") from error
        rows.append(row)
    if not rows:
        raise OptionError(f"{path} has no whole row: run `diffasr evaluate` again with the same --out")
    return rows


def read_facts(place: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``run.json`` says of a folder or of the folder of a JSONL file; empty where there is none."""
    path = Path(place)
    path = (path if path.is_dir() else path.parent) / RUN
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class Folder:
    """Rows of one evaluation on disk: opened to go on with, appended to, never rewritten."""

    def __init__(
        self, place: Path, identity: Mapping[str, Any], systems: Mapping[str, Any], session: dict[str, Any]
    ) -> None:
        """identity: what all rows share; systems: how each is decoded, by name; session: about this call.

        Raises OptionError when the folder holds rows that were made otherwise.
        """
        self.place = place
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"--out {place} can't be made: {error.strerror}; name a folder that you may write"
            ) from error
        old = read_facts(place)
        path = place / ROWS
        if not old and path.is_file():
            raise OptionError(f"{place} has {ROWS} but no {RUN}: nobody knows what made them; choose another --out")
        _check_same(place, old.get("identity", identity), identity)
        known = old.get("systems", {})
        _check_same(place, {n: known[n] for n in systems if n in known}, {n: systems[n] for n in systems if n in known})
        self.facts = {
            "identity": dict(identity),
            "systems": known | dict(systems),
            "sessions": [*old.get("sessions", []), session],
        }
        self._save()
        whole = path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0
        self._is_used = False
        self._file = path.open("ab")
        self._file.truncate(whole)
        self.done = {key_of(row) for row in read_rows(path)} if whole else set()

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows and hand them to the system before anything else is decoded."""
        new = list(rows)
        self._is_used = True
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new).encode())
        self._file.flush()
        self.done |= {key_of(row) for row in new}

    def note(self, **facts: Any) -> None:
        """Add to what is known of this session."""
        self.facts["sessions"][-1] |= facts
        self._save()

    def close(self) -> None:
        """No more rows. A session that wrote none is forgotten: no figure is its."""
        self._file.close()
        if not self._is_used:
            self.facts["sessions"].pop()
            self._save()

    def _save(self) -> None:
        write_text_atomically(self.place / RUN, json.dumps(self.facts, ensure_ascii=False, indent=2) + "\n")


def _check_same(place: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(new))
    for name in old.keys() | plain.keys():
        before, now = old.get(name), plain.get(name)
        if before != now:
            raise OptionError(
                f"{place} holds another evaluation: {name} is {json.dumps(before)[:300]} there and "
                f"{json.dumps(now)[:300]} here; choose another --out, or delete that folder"
            )


def machine_facts(device: str, threads: int) -> dict[str, Any]:
    """Where and with what this process computes, for the report: no figure of speed means anything without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": device,
        "threads": threads,
        "versions": {"python": platform.python_version(), "diffasr": __version__}
        | {name: metadata.version(name) for name in ("torch", "onnxruntime")},
        "commit": _commit(),
    }


def reset_peak_memory() -> None:
    """Forget the largest size of this process so far, where the system can do that (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """The largest resident size of this process since the last reset, or since it began."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return round(int(found[1]) / 1024, 1)
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", listing.read_text()) if listing.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that this package's source stands at, with a plus when it was changed since; None outside git."""
    here = Path(__file__).parent
    try:
        call = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(call, cwd=here, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
