"""Shared by the commands about models: finding them, and showing progress."""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from qwen_service.config import describe, load_settings
from qwen_service.install.progress import JsonSink, LogSink, Progress, ProgressSink, human_bytes, human_time
from qwen_service.models.catalog import Catalog
from qwen_service.settings import Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_model_command(
    commands: Commands, name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_models_dir_flags(parser)
    parser.set_defaults(run=run)
    return parser


def add_models_dir_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file")
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help=describe("models_dir"))


def add_progress_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines", "json"),
        default="auto",
        help="a bar on a terminal, lines in a log, json for programs (default: bar or lines)",
    )


def settings_from(options: argparse.Namespace) -> Settings:
    return load_settings({"models_dir": options.models_dir}, config_file=options.config)


def catalog_from(options: argparse.Namespace) -> Catalog:
    return Catalog.load(settings_from(options).models_dir.expanduser())


def sink_for(kind: str) -> AbstractContextManager[ProgressSink]:
    if kind == "json":
        return nullcontext(JsonSink(sys.stdout))
    if kind == "lines" or (kind == "auto" and not sys.stdout.isatty()):
        return nullcontext(LogSink(sys.stdout))
    return TerminalSink(Console())


class TerminalSink:
    """The progress bar on a terminal: files, bytes, rate and time left."""

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
