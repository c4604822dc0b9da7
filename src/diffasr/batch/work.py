"""One recording in, its rendered transcript out: what each worker of a batch does, in this process or another.

Nothing is written here: texts go back to the process that started the batch.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from diffasr import __version__
from diffasr.batch.inputs import STDIN, Recording
from diffasr.batch.ledger import fingerprint, model_digest
from diffasr.errors import DiffasrError
from diffasr.formats import Format, LineShape, render

if TYPE_CHECKING:
    from diffasr.diffusion.options import SamplingOptions
    from diffasr.hotwords import Hotwords
    from diffasr.model.loaded import Precision
    from diffasr.transcribe import Transcriber, Watch
    from diffasr.windows import ListenOptions


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a transcript depends on besides the recording."""

    model: str
    device: str
    language: str | None
    sampling: "SamplingOptions"
    precision: "Precision" = "auto"
    gpu_memory: float | None = None
    """GiB of a card: see ``diffasr.load``."""
    listen: "ListenOptions | None" = None
    hotwords: "Hotwords | None" = None
    formats: tuple[Format, ...] = ("txt",)
    shape: LineShape = field(default_factory=LineShape)

    def arguments(self) -> dict[str, Any]:
        """What ``Transcriber.transcribe`` takes."""
        return {"language": self.language, "options": self.sampling, "listen": self.listen, "hotwords": self.hotwords}

    def basis(self) -> str:
        """Settings, version and model as one text, for fingerprints; raises ModelError, DownloadError."""
        from diffasr.model.hub import place_of

        facts = dataclasses.asdict(self) | {"model": model_digest(place_of(self.model)), "version": __version__}
        return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One recording, and what is known of it."""

    recording: Recording
    known: str | None = None
    """The fingerprint of the files that are there already."""
    data: bytes | None = None
    """What standard input held."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a recording."""

    recording: Recording
    state: Literal["done", "unchanged", "failed"]
    texts: dict[Format, str] = field(default_factory=dict)
    """By format."""
    language: str = ""
    fingerprint: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Loads one model when it is first needed, and transcribes with it."""

    settings: Settings
    basis: str | None = None
    """See ``Settings.basis``; without it nothing is fingerprinted."""
    threads: int | None = None
    """Of the CPU, in this process; None: one a core."""

    @cached_property
    def transcriber(self) -> "Transcriber":
        """Raises ModelError, DownloadError, OptionError: they concern every recording."""
        from diffasr.transcribe import load

        told = self.settings
        return load(
            told.model,
            device=told.device,
            precision=told.precision,
            gpu_memory=told.gpu_memory,
            threads=self.threads,
        )

    def do(self, task: Task, watch: "Watch | None" = None) -> Outcome:
        """Transcribe one recording unless its fingerprint is known; what goes wrong with it is in the outcome."""
        recording, mark = task.recording, ""
        source = recording.source if task.data is None else task.data
        try:
            if self.basis is not None:
                mark = fingerprint(source, self.basis)
                if mark == task.known:
                    return Outcome(recording=recording, state="unchanged", fingerprint=mark)
        except OSError as error:
            message = f"{recording.source} can't be read: {error.strerror}; check the path"
            return Outcome(recording=recording, state="failed", error=message)
        asr, settings = self.transcriber, self.settings
        try:
            transcript = asr.transcribe(source, watch=watch, **settings.arguments())
            texts = {form: render(transcript, form, settings.shape) for form in settings.formats}
        except Exception as error:  # whatever one recording does to us, the other thousand are still wanted
            message = str(error) if isinstance(error, DiffasrError) else f"{type(error).__name__}: {error}"
            if recording.source == STDIN or not isinstance(error, DiffasrError):
                message = f"{recording.source}: {message}"
            return Outcome(recording=recording, state="failed", error=message)
        return Outcome(recording=recording, state="done", texts=texts, language=transcript.language, fingerprint=mark)
