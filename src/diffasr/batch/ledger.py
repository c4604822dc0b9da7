"""What an output folder remembers of its runs: what is done, with which settings, and what failed.

``.diffasr.jsonl`` has a line for each finished recording; the last line of a place counts. ``errors.jsonl`` has a line
for each failure of the latest run, and is not there when nothing failed. Both grow line by line, so that a run which is
stopped loses nothing. A line that a crash cut in two is not read.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffasr.batch.inputs import Recording
from diffasr.errors import OptionError

DONE_FILE = ".diffasr.jsonl"
ERRORS_FILE = "errors.jsonl"


class Ledger:
    """The two files of one output folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is missing, read what is done, forget old errors; raises OptionError."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._done = folder / DONE_FILE
            self._done.touch()
            self.errors = folder / ERRORS_FILE
            self.errors.unlink(missing_ok=True)
            self._fingerprints = _read(self._done)
        except OSError as error:
            raise OptionError(
                f"--output-dir {folder} can't be used: {error.strerror}; name a folder that you may write"
            ) from error

    def targets(self, recording: Recording, formats: Sequence[str]) -> dict[str, Path]:
        """The file of each format: the whole name of the recording and the format's."""
        return {f: self.folder / recording.place.with_name(f"{recording.place.name}.{f}") for f in formats}

    def known(self, recording: Recording, formats: Sequence[str]) -> str | None:
        """The fingerprint of what stands in the folder; None where a file is missing."""
        if all(path.is_file() for path in self.targets(recording, formats).values()):
            return self._fingerprints.get(recording.place.as_posix())
        return None

    def finished(self, recording: Recording, fingerprint: str) -> None:
        """Its files are all written."""
        _append(self._done, {"input": recording.place.as_posix(), "fingerprint": fingerprint})

    def failed(self, recording: Recording, error: str) -> None:
        """It could not be transcribed, or not be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _append(self.errors, {"input": recording.source, "error": error, "time": now})


def fingerprint(source: str | bytes, basis: str) -> str:
    """The content of a file, or bytes, together with everything else that a transcript depends on; raises OSError."""
    digest = hashlib.sha256(basis.encode())
    if isinstance(source, bytes):
        digest.update(hashlib.sha256(source).digest())
    else:
        with Path(source).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def model_digest(place: Path) -> str:
    """The configs, weights and tokenizer of a checkpoint folder, or of a file that holds it all."""
    digest = hashlib.sha256()
    files = [place] if place.is_file() else place.iterdir()
    for path in sorted(p for p in files if p.suffix in (".json", ".safetensors", ".pt")):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError, KeyError, TypeError):
            row = json.loads(line)
            found[row["input"]] = row["fingerprint"]
    return found


def _append(path: Path, row: dict[str, Any]) -> None:
    """Add a line, on one of its own even behind half a line; names that are not UTF-8 are escaped."""
    line = json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace")
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + line + b"\n")
