"""The progress bar of `qwen-service pull` on a terminal: files, bytes, rate and time left. Needs rich."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from qwen_service.install.progress import Progress, human_bytes, human_time


class TerminalSink:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[files]}  {task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._action = ""

    def __enter__(self) -> "TerminalSink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def stage(self, text: str) -> None:
        self._end_bar()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, progress: Progress) -> None:
        if self._task is None or progress.action != self._action:
            self._end_bar()
            self._bar.start()
            self._action = progress.action
            self._task = self._bar.add_task(progress.action, total=None, files="", figures="")
        self._bar.update(
            self._task,
            completed=progress.bytes,
            total=progress.total_bytes,
            files=f"{progress.files}/{progress.total_files} files" if progress.total_files > 1 else "",
            figures=_figures(progress),
        )

    def _end_bar(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None


def _figures(progress: Progress) -> str:
    text = f"{human_bytes(progress.bytes)} of {human_bytes(progress.total_bytes)}"
    if progress.rate > 0 and progress.seconds_left is not None:
        text += f"  {human_bytes(progress.rate)}/s  {human_time(progress.seconds_left)} left"
    return text
