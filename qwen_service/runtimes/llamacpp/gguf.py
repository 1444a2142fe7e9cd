"""Reads the head of a GGUF file: the context that the model was trained for, and the memory of a token."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# GGUF, version 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 20  # most bytes of a name and entries of an array; more means damage
_FIRST_OF_TOKENIZER = "tokenizer."  # the long lists of the tokenizer come after the keys that are read here
F16 = 2  # bytes


class GgufError(Exception):
    """The file is damaged, or of a newer version. llama.cpp may still be able to load it."""


@dataclass(frozen=True, slots=True)
class GgufShape:
    train_context: int  # tokens; 0: not in the file
    bytes_per_token: int  # of an F16 KV cache; 0: unknown


def read_shape(path: Path) -> GgufShape:
    """Read the head. Raises OSError, or GgufError when it cannot be understood."""
    with path.open("rb") as file:
        try:
            return _shape(_metadata(file))
        except (ValueError, struct.error, TypeError) as error:
            raise GgufError(f"the head of {path} cannot be read: {error}") from error


def _shape(told: dict[str, Any]) -> GgufShape:
    kind = told.get("general.architecture", "")

    def of_kind(name: str, default: Any = 0) -> Any:
        return told.get(f"{kind}.{name}", default)

    layers, heads = of_kind("block_count"), of_kind("attention.head_count")
    width = of_kind("embedding_length") // heads if isinstance(heads, int) and heads else 0
    per_head = of_kind("attention.key_length", width) + of_kind("attention.value_length", width)
    kv_heads = of_kind("attention.head_count_kv", heads)
    all_heads = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers
    return GgufShape(of_kind("context_length"), all_heads * per_head * F16)


def _metadata(file: BinaryIO) -> dict[str, Any]:
    _, version, _, entries = _unpack(file, "4sIQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format")
    found: dict[str, Any] = {}
    for _ in range(entries):
        name = _string(file)
        if name.startswith(_FIRST_OF_TOKENIZER):
            break
        found[name] = _value(file, *_unpack(file, "I"))
    return found


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, count = _unpack(file, "IQ")
        if count > _LONGEST:
            raise ValueError(f"a list of {count} entries")
        return [_value(file, of) for _ in range(count)]
    if kind not in _NUMBERS:
        raise ValueError(f"a value of kind {kind}")
    return _unpack(file, _NUMBERS[kind])[0]


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length).decode(errors="replace")


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
