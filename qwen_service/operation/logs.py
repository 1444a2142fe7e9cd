"""The service's own log: text or JSON, one line per request, each line with the id of the request it belongs to.

It never contains prompts, replies or keys. (With `log_prompts` the pipeline writes prompts to it.)
"""

import json
import logging
import re
import string
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from qwen_service.process.log_file import LogFile
from qwen_service.request_record import RequestRecord, current_record
from qwen_service.settings import TOKENIZER_LOGGER

LogFormat = Literal["text", "json"]
ROOT = "qwen_service"
OTHER_LOGGERS = ("uvicorn", "asyncio")

# Control characters (C0, DEL, C1), other line ends, marks that change the direction of writing, lone surrogates.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_AMBIGUOUS = re.compile(r'[\s="]')  # in the value of a field
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

access_log = logging.getLogger(f"{ROOT}.access")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(line, default=str, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """Control characters are escaped, so that no client can forge a line or a field, or command a terminal.

    The lines of a traceback are indented: none of them looks like a line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="milliseconds")
        message = escaped(record.getMessage())
        request_id = _request_id(record)
        fields = "".join(f" {name}={_value(value)}" for name, value in getattr(record, "fields", {}).items())
        text = f"{moment} {record.levelname:<7} {message}{fields}{f' [{request_id}]' if request_id else ''}"
        if record.exc_info:
            text += "".join(f"\n    {escaped(line)}" for line in self.formatException(record.exc_info).split("\n"))
        return text


class BoundedFileHandler(logging.Handler):
    """Writes to a file that is rotated; a full disk does not stop the service."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__()
        self._file = LogFile(path, max_bytes)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.write(self.format(record).encode(errors="replace") + b"\n")

    def close(self) -> None:
        self._file.close()
        super().close()


def configure(
    level: str,
    form: LogFormat,
    file: Path | None = None,
    max_bytes: int = 10 * 1024 * 1024,
    *,
    tokenizer_file: Path | None = None,
) -> list[logging.Handler]:
    """Send our log and uvicorn's to stderr and to `file`, the tokenizer server's to `tokenizer_file` as well.

    Returns the handlers of stderr and `file`, so that a test can remove them.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        handlers.append(BoundedFileHandler(file, max_bytes))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    tokenizer_handlers = [BoundedFileHandler(tokenizer_file, max_bytes)] if tokenizer_file is not None else []
    for handler in tokenizer_handlers:
        handler.setFormatter(TextFormatter())
    logging.getLogger(TOKENIZER_LOGGER).handlers[:] = tokenizer_handlers
    for name in (ROOT, *OTHER_LOGGERS):
        logger = logging.getLogger(name)
        logger.handlers[:] = handlers
        logger.propagate = False
    set_level(level)
    return handlers


def set_level(level: str) -> None:
    """Change the level, at any time, while requests run."""
    logging.getLogger(ROOT).setLevel(level.upper())
    for name in OTHER_LOGGERS:  # their debug output is about themselves
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger(ROOT).level))


def log_request(record: RequestRecord) -> None:
    """Log the one line of a request that has ended."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    extra = {"fields": _fields(record), "request_id": record.id}
    path = quote(record.path, safe=string.punctuation, errors="replace")  # a space would look like the end of the path
    access_log.info("%s %s %d", record.method, path, record.status, extra=extra)


def _fields(record: RequestRecord) -> dict[str, object]:
    """The fields of the line; empty ones are left out. Durations in seconds."""
    fields: dict[str, object] = {"client": record.client, "duration": round(record.duration, 4)}
    if record.model:
        fields |= {
            "model": record.model,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "queue": round(record.queue, 4),
            "finish": record.finish or "cut",
        }
    if record.first_token is not None:
        fields["ttft"] = round(record.first_token, 4)
    if record.speech:
        fields |= {"speech": record.speech, "speech_seconds": round(record.speech_seconds, 2)}
    optional = {"dialect": record.dialect, "trimmed": record.trimmed_messages, "error": record.error}
    return fields | {name: value for name, value in optional.items() if value}


def escaped(text: str) -> str:
    """Write everything that a terminal or an editor would obey as JSON writes it: `\\u001b`, `\
`."""
    return _OBEYED.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", text)


def _value(value: object) -> str:
    """Write the value of a field, in quotes if it could be read as several fields."""
    text = str(value)
    if isinstance(value, int | float):
        return text
    if _AMBIGUOUS.search(text):
        text = json.dumps(text, ensure_ascii=False)
    return escaped(text)


def _request_id(record: logging.LogRecord) -> str:
    given = getattr(record, "request_id", None)
    if given is None and (current := current_record.get()) is not None:
        given = current.id
    return given or ""
