"""The tokenizer of a model folder: text to ids, ids to text, also while ids arrive one by one.

Byte-level BPE (Qwen, GPT-2 and similar). Special tokens are never parsed out of text: the `added_tokens` are cut
out of tokenizer.json before the BPE is built, so only an id can put one into a prompt.
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

from qwen_service.chat import PromptParts
from qwen_service.errors import InstallError, InvalidRequest

LONG_TEXT = 4_000  # characters; about 2 ms of encoding
SECTION = 65_536  # characters encoded at once; encoding takes 200 bytes of memory per character
# Between a letter and a following " word": every pre-tokenizer of this kind cuts there.
WORD_BOUNDARY = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
ADDED_TOKENS_SIZE = 1_000_000  # bytes, at most; Qwen3's take 4 kB


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 upwards in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True, slots=True)
class AddedToken:
    content: bytes
    special: bool  # true: a control token, which is not shown; false: a visible one, such as <think>


class LocalTokenizer:
    """A tokenizer that several threads may use. It encodes long texts without holding the interpreter's lock."""

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
        """Encode on this thread. Raises InvalidRequest for an id that is no token, which would crash the vendor's programs."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part  # join neighbouring texts: the ids must not show where a part ended
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
        """The exact bytes of the ids; control tokens and ids outside the vocabulary give none."""
        return b"".join(map(self._token_bytes, token_ids))

    def _token_bytes(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return b"" if added.special else added.content
        token = self._bpe.id_to_token(token_id) if 0 <= token_id < self._bpe_size else None
        return bytes(BYTE_OF_CHARACTER[character] for character in token) if token else b""

    def _known(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(f"There is no token {token_id}: the vocabulary ends at {self.vocab_size - 1}.")
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
    """Turns ids into text as soon as characters are whole. IO-free. finish() returns the rest of a broken character."""

    def __init__(self, tokenizer: LocalTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        return self._utf8.decode(self._tokenizer.to_bytes(token_ids))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _without_added_tokens(path: Path) -> tuple[bytes, list[dict[str, Any]]]:
    # Found by a pattern: parsing all of its 11 MB in Python would cost 70 MB. A quote inside a JSON string is
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
    """Read the chat template of the folder: the default one of several; empty when there is none."""
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
    """Join the halves of surrogate pairs, which JSON can carry; replace a lone half by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _sections(text: str) -> Iterator[str]:
    """Cut a long text where the cut does not change its ids; a text without such places stays whole."""
    start = 0
    while len(text) - start > SECTION and (boundary := WORD_BOUNDARY.search(text, start + SECTION)):
        yield text[start : boundary.start()]
        start = boundary.start()
    yield text[start:]


def _return_freed_memory() -> None:
    """Give freed memory back to the system: after building the BPE glibc keeps 40 MB until it is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
