"""SmolLM2 cut down to a fortieth of its size: llama.cpp loads it in 0.2 s instead of 1 s, and runs it thirty times as fast.

It keeps two layers, a third of their width and the first tokens. What it writes makes no sense; all else is real: the
format, the tokenizer, the chat template, the control tokens and the KV cache.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

LAYERS = 2  # of 30
NARROWER = 3  # 3 query heads and 1 KV head remain, of 9 and 3; a head is as wide as before
WIDTH = 576 // NARROWER  # of an embedding
TOKENS, ALL_TOKENS = 8192, 49152
NUMBERS = {
    "llama.block_count": LAYERS,
    "llama.vocab_size": TOKENS,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": 1536 // NARROWER,
    "llama.attention.head_count": 9 // NARROWER,
    "llama.attention.head_count_kv": 3 // NARROWER,
}
LISTS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
# GGUF, version 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its kind
STRING, ARRAY = 8, 9
BLOCKS = {0: (1, 4), 3: (32, 20), 8: (32, 34)}  # F32, Q4_1 and Q8_0: the values and the bytes of a block
ALIGNMENT = 32  # bytes


def write_small_gguf(source: Path, target: Path) -> None:
    """`source` is SmolLM2-135M-Instruct, quantized to Q4_1."""
    whole = _Reader(source.read_bytes())
    magic, version, tensors, entries = whole.take("4sIQQ")
    metadata = b"".join(_entry(whole) for _ in range(entries))
    kept = [tensor for tensor in [_tensor(whole) for _ in range(tensors)] if tensor.layer < LAYERS]
    start = whole.at + -whole.at % ALIGNMENT
    head, weights = bytearray(), bytearray()
    for tensor in kept:
        head += tensor.head(len(weights))
        weights += _padded(tensor.cut(whole.content, start))
    head[:0] = struct.pack("<4sIQQ", magic, version, len(kept), entries) + metadata
    target.write_bytes(_padded(bytes(head)) + weights)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, layout: str) -> tuple[int, ...]:
        found = struct.unpack_from(f"<{layout}", self.content, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return found

    def string(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def values(self, kind: int, count: int = 1) -> bytes:
        start = self.at
        for _ in range(count if kind == STRING else 0):
            self.string()
        self.at += SIZES.get(kind, 0) * count
        return self.content[start : self.at]


def _entry(whole: _Reader) -> bytes:
    """The next entry of the metadata, as it is in the small file."""
    start = whole.at
    name = whole.string()
    (kind,) = whole.take("I")
    before = whole.content[start : whole.at]
    if kind == ARRAY:
        of, count = whole.take("IQ")
        left_out = ALL_TOKENS - TOKENS if name in LISTS else 0
        values = whole.values(of, count - left_out)
        whole.values(of, left_out)
        return before + struct.pack("<IQ", of, count - left_out) + values
    value = whole.values(kind)
    if name in NUMBERS:
        value = struct.pack("<I", NUMBERS[name])
    return before + value


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]  # the length of a row first
    kind: int
    offset: int  # bytes, in the weights of the whole file

    @property
    def layer(self) -> int:
        """-1: of none."""
        part, _, rest = self.name.partition(".")
        return int(rest.partition(".")[0]) if part == "blk" else -1

    @property
    def small_shape(self) -> tuple[int, ...]:
        return tuple(TOKENS if length == ALL_TOKENS else length // NARROWER for length in self.shape)

    def head(self, offset: int) -> bytes:
        name, shape = self.name.encode(), self.small_shape
        layout = f"<Q{len(name)}sI{len(shape)}QIQ"
        return struct.pack(layout, len(name), name, len(shape), *shape, self.kind, offset)

    def cut(self, content: bytes, start: int) -> bytes:
        """The first columns of the first rows. `start`: where the weights begin in `content`."""
        values, size = BLOCKS[self.kind]
        row, kept = (shape[0] // values * size for shape in (self.shape, self.small_shape))
        rows = [start + self.offset + row * number for number in range((*self.small_shape, 1)[1])]
        return b"".join(content[at : at + kept] for at in rows)


def _tensor(whole: _Reader) -> _Tensor:
    name = whole.string()
    (dimensions,) = whole.take("I")
    shape = whole.take(f"{dimensions}Q")
    kind, offset = whole.take("IQ")
    return _Tensor(name, shape, kind, offset)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)
