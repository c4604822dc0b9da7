"""Words of a command line in, recordings out: files, folders, patterns and standard input.

Each recording gets a place, which is its path below the output folder without the ending of a format:

- a file: its name, ``talk.mp3``;
- what a folder or a pattern finds: the path below that folder, or below the part of the pattern before its first
  wildcard, so ``talks/**`` puts ``talks/a/x.mp3`` at ``a/x.mp3``;
- ``-``: ``stdin``.

Folders are walked to the end. Only files with a known ending count there, hidden ones never. The same holds for
patterns, but one that says an ending without wildcards, such as ``'*.dat'``, takes what it says. A file that is found
twice counts once, at its first place.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from diffasr.errors import OptionError

STDIN = "-"
_ENDINGS = """
    3gp aac ac3 aif aiff amr ape asf au avi caf eac3 flac flv m2ts m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg oga ogg
    ogv opus w64 wav webm wma wmv wv
"""
ENDINGS = frozenset(f".{name}" for name in _ENDINGS.split())
"""What counts as a recording in a folder. No .ts: most such files are programs."""

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Something to transcribe."""

    source: str
    """A path as the caller would write it, or ``-``."""
    place: PurePath
    """Where its outputs go, below the output folder and without their endings."""

    @property
    def size(self) -> int:
        """Bytes; 1 where nobody knows."""
        path = Path(self.source)
        return path.stat().st_size if self.source != STDIN and path.is_file() else 1


def find_recordings(words: Sequence[str]) -> list[Recording]:
    """All recordings that the words name, in their order, those of a folder sorted by name.

    A name without wildcards need not exist: that is an error of the recording, not of the call. Raises OptionError for
    a folder or a pattern in which there is nothing.
    """
    found: dict[str, Recording] = {}
    for word in words:
        for recording in _of_word(word):
            key = STDIN if recording.source == STDIN else os.path.abspath(recording.source)
            found.setdefault(key, recording)
    return list(found.values())


def check_places(recordings: Sequence[Recording]) -> None:
    """Raise OptionError where two recordings would be written to one place."""
    taken: dict[PurePath, str] = {}
    for recording in recordings:
        other = taken.setdefault(recording.place, recording.source)
        if other != recording.source:
            raise OptionError(
                f"{other} and {recording.source} would both be written to {recording.place}: name a folder that holds"
                " both, which keeps their own folders apart, or call them one by one with another --output-dir"
            )


def _of_word(word: str) -> Iterator[Recording]:
    path = _place(word)
    if word == "":
        raise OptionError("an empty name is no recording: is a variable of the shell unset?")
    if word == STDIN:
        yield Recording(source=STDIN, place=PurePath("stdin"))
    elif path.is_dir():
        yield from _below(path, _walk(path), word)
    elif _WILDCARD.search(word) and not path.exists():  # a file may be called talk[1].mp3
        yield from _below(_fixed_part(path), _matches(path), word)
    else:
        yield Recording(source=str(path), place=PurePath(path.name))


def _place(word: str) -> Path:
    """``~`` and ``~name`` are homes, except where there is no such person: a file may be called ~talk.mp3."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        return Path(word)


def _below(root: Path, files: Sequence[Path], word: str) -> Iterator[Recording]:
    if not files:
        raise OptionError(f"{word} holds no recording: known endings are {' '.join(sorted(ENDINGS))}")
    for file in files:
        yield Recording(source=str(file), place=file.relative_to(root))


def _walk(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if _is_recording(name)]
    return sorted(found)


def _matches(pattern: Path) -> list[Path]:
    """Files that fit the pattern, in it or below the folders that ``**`` reaches."""
    found = [Path(match) for match in glob.glob(str(pattern), recursive=True)]
    says_ending = pattern.suffix != "" and not _WILDCARD.search(pattern.suffix)
    return sorted(path for path in found if path.is_file() and (says_ending or _is_recording(path.name)))


def _fixed_part(pattern: Path) -> Path:
    """The folders before the first wildcard."""
    parts = pattern.parts
    wild = next(n for n, part in enumerate(parts) if _WILDCARD.search(part))
    return Path(*parts[:wild])


def _is_recording(name: str) -> bool:
    return not name.startswith(".") and PurePath(name).suffix.lower() in ENDINGS
