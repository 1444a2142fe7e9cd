"""One mapping of a YAML file being read, with readers of single values: every mistake says where it is and what was
expected instead."""

import difflib
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar, get_args

from qwen_service.errors import ServiceError

T = TypeVar("T")


class ManifestError(ServiceError):
    """A manifest says something that cannot be. The message names file, key, value and expectation."""


class Expected(Exception):
    """Raised by a reader of a value: `raise Expected("a number")`."""


_REQUIRED: Any = object()


class Section:
    """One YAML mapping being read; what nobody asked for by the time of finish() is a spelling mistake."""

    def __init__(self, content: object, origin: str, prefix: str = "") -> None:
        self.origin, self.prefix = origin, prefix
        if not isinstance(content, dict):
            raise self.error("", content, "lines of the form `key: value`")
        self.values: dict[str, object] = {str(key): value for key, value in content.items()}
        self.asked: list[str] = []

    def error(self, key: str, value: object, expected: str) -> ManifestError:
        where = f"{self.prefix}{key}".rstrip(".") or "manifest"
        return ManifestError(f"{self.origin}: {where}: {value!r} is not allowed, expected {expected}.")

    def one(self, key: str, read: Callable[[object], T], default: Any = _REQUIRED) -> T:
        self.asked.append(key)
        if self.values.get(key) is None:
            if default is _REQUIRED:
                raise ManifestError(f"{self.origin}: {self.prefix}{key}: is missing.")
            return default  # type: ignore[no-any-return]  # the default of a T is a T
        return self._read(key, self.values[key], read)

    def many(self, key: str, read: Callable[[object], T]) -> tuple[T, ...]:
        return tuple(self._read(key, value, read) for value in self._list(key))

    def section(self, key: str) -> "Section":
        self.asked.append(key)
        content = self.values.get(key)
        return Section({} if content is None else content, self.origin, f"{self.prefix}{key}.")

    def sections(self, key: str) -> list["Section"]:
        prefix = f"{self.prefix}{key}"
        return [Section(value, self.origin, f"{prefix}[{n}].") for n, value in enumerate(self._list(key))]

    def finish(self) -> None:
        for key, value in self.values.items():
            if key not in self.asked:
                near = difflib.get_close_matches(key, self.asked, n=1, cutoff=0.5)
                raise self.error(key, value, f"the key {near[0]}" if near else f"one of {', '.join(self.asked)}")

    def _list(self, key: str) -> list[object]:
        self.asked.append(key)
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, value, "a list")
        return value

    def _read(self, key: str, value: object, read: Callable[[object], T]) -> T:
        try:
            return read(value)
        except Expected as expected:
            raise self.error(key, value, str(expected)) from None


def text(value: object) -> str:
    if not isinstance(value, str):
        raise Expected("a text")
    return value.strip()


def argument(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Expected("a text or a number")
    return str(value)


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Expected("true or false")
    return value


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise Expected("a number, 0 or more")
    return value


def positive(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Expected("a whole number, 1 or more")
    return value


def scalar(value: object) -> bool | int | float:
    if not isinstance(value, bool | int | float):
        raise Expected("a number, true or false")
    return value


def inner_path(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Expected("a path inside the model's folder")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value or "\0" in value:
        raise Expected("a path inside the model's folder")
    return str(path)


def pattern(regex: re.Pattern[str], expected: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not regex.fullmatch(value):
            raise Expected(expected)
        return value

    return read


def choice(literal: Any) -> Callable[[object], Any]:
    choices = get_args(literal)

    def read(value: object) -> Any:
        if value not in choices:
            raise Expected(f"one of {', '.join(choices)}")
        return value

    return read
