"""A transcript in, the text of a file out; and a way to write that file whole or not at all."""

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Literal, TypeAlias

from diffasr.errors import OptionError
from diffasr.transcript import Transcript

Format: TypeAlias = Literal["txt", "json"]


def render(transcript: Transcript, format: Format) -> str:
    """Write a transcript as ``format``; the result ends with one newline.

    txt: the text alone. json: ``Transcript.to_dict``, readable letters rather than escapes.
    Raises OptionError for another format.
    """
    match format:
        case "txt":
            return transcript.text.rstrip("\n") + "\n"
        case "json":
            return json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        case _:
            raise OptionError(f"format must be txt or json, got {format!r}")


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8: a reader, or a crash, sees the old file or the new one.

    Raises OptionError when the folder is missing or cannot be written to; the old file is then untouched.
    """
    target = Path(path).resolve()  # through a link: the link stays, what it points to is replaced
    data = text.encode()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")  # same folder: replacing cannot cross disks
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the new name with no content
        if target.exists():
            shutil.copymode(target, draft)
        draft.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose a folder that exists, may be written to and has room"
        raise OptionError(f"cannot write {path}: {reason}; {remedy}") from error
    finally:
        draft.unlink(missing_ok=True)
