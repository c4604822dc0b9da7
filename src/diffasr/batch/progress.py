"""A line on the terminal that says how far a batch is, and when it will be done."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from diffasr.batch.inputs import Recording
from diffasr.batch.work import Outcome


class ProgressLine:
    """Counts recordings; the time that is left is reckoned by their bytes.

    What was done in an earlier run is taken off the total: it costs no time and must not make the rest look fast.
    """

    def __init__(self, recordings: Sequence[Recording], console: Console, *, is_shown: bool) -> None:
        """is_shown: false keeps the terminal quiet, but ``say`` still speaks."""
        self._sizes = {recording: max(1, recording.size) for recording in recordings}
        self._bar = Progress(
            TextColumn("transcribing"),
            BarColumn(),
            TextColumn("{task.fields[files]} of {task.fields[all_files]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not is_shown,
            redirect_stdout=False,  # transcripts may be on their way there
            transient=True,
        )
        self._console = console
        self._task: TaskID = self._bar.add_task("", total=sum(self._sizes.values()), files=0, all_files=len(recordings))

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar, or on stderr alone."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, outcome: Outcome) -> None:
        """Count one recording more."""
        size, task = self._sizes[outcome.recording], self._bar.tasks[0]
        files = task.fields["files"] + 1
        if outcome.state == "unchanged":
            self._bar.update(self._task, total=(task.total or size) - size, files=files)
        else:
            self._bar.update(self._task, advance=size, files=files)
