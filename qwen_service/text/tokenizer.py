"""A model folder's own tokenizer: text <-> ids, special ids, and ids -> text while they arrive.

Byte-level BPE (Qwen, GPT-2 and their kin). Special tokens are never parsed out of text: the `added_tokens` are cut
out of tokenizer.json before the BPE is built, and the only way to get one into a prompt is to name its id.
"""

import asyncio
import codecs
import ctypes
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from qwen_service.errors import InstallError, InvalidRequest

LONG_TEXT = 4_000  # characters; about 2 ms of encoding
SECTION = 65_536  # characters encoded at once; an encoding takes 200 bytes per character while it lasts
# Between a letter and a word that begins with its space: every pre-tokenizer of this kind cuts there.
WORD_BOUNDARY = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
ADDED_TOKENS_SIZE = 1_000_000  # bytes, at most; Qwen3's take 4 kB
PromptParts = Sequence[str | int]  # as in runtimes.base, which is a layer above


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 upwards in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True, slots=True)
class AddedToken:
    content: bytes
    special: bool  # a control token, which is not shown; others, such as <think>, are


class LocalTokenizer:
    """Safe to use from several threads; long texts are encoded without holding the interpreter's lock."""

    def __init__(self, folder: Path) -> None:
        definition, added = _without_added_tokens(folder / "tokenizer.json")
        config = json.loads(_read(folder / "tokenizer_config.json"))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no thread pool, no warning in forked children
        self._bpe = _build(definition, folder)
        del definition
        _return_freed_memory()
        self._added = {token["id"]: AddedToken(token["content"].encode(), token["special"]) for token in added}
        self.special_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        self._bpe_size = self._bpe.get_vocab_size()
        self.vocab_size: int = max([self._bpe_size, *(id_ + 1 for id_ in self._added)])
        self.bos_id = self._configured_id(config, "bos_token")
        self.eos_id = self._configured_id(config, "eos_token")
        self.chat_template = _chat_template(config, folder)

    def encode_now(self, parts: PromptParts) -> list[int]:
        """InvalidRequest for an id that is no token: the vendor's programs would crash."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part  # neighbouring texts are one text: where a part ends must not be seen in the ids
            else:
                ids += [*self._encode_text(text), self._known(part)]
                text = ""
        return ids + self._encode_text(text)

    async def encode(self, parts: PromptParts) -> list[int]:
        if sum(len(part) for part in parts if isinstance(part, str)) < LONG_TEXT:
            return self.encode_now(parts)
        return await asyncio.to_thread(self.encode_now, parts)

    def decode_now(self, token_ids: Iterable[int]) -> str:
        return self.to_bytes(token_ids).decode(errors="replace")

    async def decode(self, token_ids: Sequence[int]) -> str:
        return self.decode_now(token_ids)

    def decoder(self) -> "TokenDecoder":
        return TokenDecoder(self)

    def to_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The exact bytes; control tokens and ids outside the vocabulary have none."""
        return b"".join(map(self._token_bytes, token_ids))

    def _token_bytes(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return b"" if added.special else added.content
        token = self._bpe.id_to_token(token_id) if 0 <= token_id < self._bpe_size else None
        return bytes(BYTE_OF_CHARACTER[character] for character in token) if token else b""

    def _known(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(f"there is no token {token_id}: the vocabulary ends at {self.vocab_size - 1}")
        return token_id

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = []
        for section in _sections(_well_formed(text)):
            # The plain encode() holds the interpreter's lock: 1 MB would stall every other thread for half a second.
            ids += self._bpe.encode_batch_fast([section], add_special_tokens=False)[0].ids
        if len(text) > SECTION:
            _return_freed_memory()
        return ids

    def _configured_id(self, config: dict[str, Any], key: str) -> int | None:
        token = config.get(key)
        content = token["content"] if isinstance(token, dict) else token
        return self.special_ids.get(content) if content else None


class TokenDecoder:
    """IO-free: ids in, text out as soon as its characters are whole. finish() gives what was left of a broken one."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        return self._utf8.decode(self._tokenizer.to_bytes(token_ids))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _without_added_tokens(path: Path) -> tuple[bytes, list[dict[str, Any]]]:
    # Cut out of the bytes: parsing all of its 11 MB in Python would cost 70 MB. A quote inside a JSON string is
    # escaped, so the pattern matches a key only; the vocabulary's values are numbers, so it matches only this key.
    definition = _read(path)
    found = re.search(rb'"added_tokens"\s*:\s*(?=\[)', definition)
    if found is None:
        return definition, []
    start = found.end()
    text = definition[start : start + ADDED_TOKENS_SIZE].decode(errors="ignore")
    added, length = json.JSONDecoder().raw_decode(text)
    end = start + len(text[:length].encode())
    return definition[:start] + b"[]" + definition[end:], added


def _build(definition: bytes, folder: Path) -> tokenizers.Tokenizer:
    try:
        bpe = tokenizers.Tokenizer.from_buffer(definition)
    except ValueError as error:
        raise InstallError(f"{folder / 'tokenizer.json'} cannot be read: {error}. Fetch the model again.") from error
    if not isinstance(bpe.decoder, tokenizers.decoders.ByteLevel):
        raise InstallError(f"{folder / 'tokenizer.json'} is not a byte-level BPE, the only kind supported here.")
    return bpe


def _chat_template(config: dict[str, Any], folder: Path) -> str:
    """Empty when the folder has none; of several named ones the default."""
    own_file = folder / "chat_template.jinja"
    if own_file.exists():
        return own_file.read_text(encoding="utf-8")
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named.get("default", ""))
    return str(template)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InstallError(f"{path} cannot be read: {error.strerror}. Fetch the model again.") from error
    if content.startswith(b"version https://git-lfs"):
        raise InstallError(f"{path} is a git-lfs pointer, not the file itself. Fetch the model again, with git-lfs.")
    return content


def _well_formed(text: str) -> str:
    """Halves of a surrogate pair, which JSON can carry, are joined; a lone half becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sections(text: str) -> Iterator[str]:
    """Cut a long text where that is not seen in its ids; a text without such places stays whole."""
    start = 0
    while len(text) - start > SECTION and (boundary := WORD_BOUNDARY.search(text, start + SECTION)):
        yield text[start : boundary.start()]
        start = boundary.start()
    yield text[start:]


def _return_freed_memory() -> None:
    """Building the BPE leaves 40 MB of freed memory with the allocator; glibc gives it back when asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
