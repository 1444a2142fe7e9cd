"""Shared by the commands about models: finding them, and showing progress."""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from qwen_service.commands.pull_terminal import TerminalSink
from qwen_service.config import describe, load_settings
from qwen_service.install.progress import JsonSink, LogSink, ProgressSink
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
