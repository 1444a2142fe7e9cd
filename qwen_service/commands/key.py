"""qwen-service key NAME: makes an API key. The service keeps only its hash."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from qwen_service.api.keys import KeyFileError, new_key


def add_key_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("key", help="make an API key", description=__doc__)
    parser.add_argument("name", help="who will use it; shown in the log")
    parser.add_argument("--file", type=Path, help="add it to this file (api_keys_file) instead of printing its line")
    parser.set_defaults(run=make_key)


def make_key(options: argparse.Namespace) -> int:
    key, line = new_key(options.name)
    if options.file is None:
        print(f"The line for api_keys_file:\n  {line}\nThe key, shown this once:", file=sys.stderr)
    else:
        _append(options.file, line)
        print(f"Added to {options.file}. The key, shown this once:", file=sys.stderr)
    print(key)
    return 0


def _append(path: Path, line: str) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise KeyFileError(f"{path}: the key cannot be added: {error.strerror}") from None
