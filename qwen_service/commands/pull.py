"""qwen-service pull: downloads a model, or installs it from a folder."""

import argparse
import os
import sys
from pathlib import Path

from qwen_service.commands.progress import Commands, add_model_command, add_progress_flag, catalog_from, sink_for
from qwen_service.errors import ServiceError
from qwen_service.install.downloads import pull
from qwen_service.install.import_folder import import_folder
from qwen_service.install.progress import JsonSink, ProgressSink
from qwen_service.models.machine import Machine


def add_pull_command(commands: Commands) -> None:
    parser = add_model_command(commands, "pull", "download a model, verify it and install it", run_pull)
    parser.add_argument("name", help="name of the model; `qwen-service list --all` shows them")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="install the model from this folder instead of downloading it",
    )
    parser.add_argument("--link", action="store_true", help="with --from: link to its files instead of copying them")
    parser.add_argument("--if-none", action="store_true", help="do nothing if any model is installed")
    add_progress_flag(parser)


def run_pull(options: argparse.Namespace) -> int:
    with sink_for(options.progress) as sink:
        try:
            _pull(options, sink)
        except ServiceError as error:
            if isinstance(sink, JsonSink):
                sink.write({"error": error.message})
                return 1
            raise
        except KeyboardInterrupt:
            sink.stage("Stopped. Run the same command to continue with what has been downloaded.")
            sys.stdout.flush()
            os._exit(130)  # threads that wait for a silent server would hold the process for a minute
        if isinstance(sink, JsonSink):
            sink.write({"status": "success"})
    return 0


def _pull(options: argparse.Namespace, sink: ProgressSink) -> None:
    catalog = catalog_from(options)
    spec = catalog.find(options.name)
    if options.if_none and catalog.chatting():
        return
    if options.source is not None:
        import_folder(spec, options.source, catalog.models_dir, sink, link=options.link)
    else:
        pull(spec, catalog.models_dir, Machine(), sink)
