"""Tokenizes with the engine's own vocabulary, over its socket.

Text never becomes a special token: llama.cpp is told not to search for them, and where it does so anyway (the tags
of Qwen's tool calls are found in any text) the text is cut in two, because each text is tokenized separately.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

from qwen_service.chat import PromptParts
from qwen_service.errors import InvalidRequest

CHARACTERS = 500_000  # characters kept at most, about 2 MB with their ids
BORDER = -1  # no token has this id


class TokenCache:
    """Remembers the ids of tokenized texts, so that only the newest message of a conversation is tokenized.

    The cache is bounded in characters; the least recently used text is dropped first.
    """

    def __init__(self, characters: int = CHARACTERS) -> None:
        self._room = characters
        self._ids: OrderedDict[str, array[int]] = OrderedDict()

    def known(self, texts: Iterable[str]) -> dict[str, Sequence[int]]:
        found: dict[str, Sequence[int]] = {}
        for text in texts:
            if text in self._ids:
                self._ids.move_to_end(text)
                found[text] = self._ids[text]
        return found

    def put(self, new: Mapping[str, Sequence[int]]) -> None:
        for text, ids in new.items():
            if text not in self._ids:
                self._ids[text] = array("i", ids)
                self._room -= len(text)
        while self._room < 0:
            oldest, _ = self._ids.popitem(last=False)
            self._room += len(oldest)


class LlamaTokenizer:
    """The tokenizer. `post` sends a body to a route and returns the answer."""

    def __init__(self, post: Callable[[str, Any], Awaitable[Any]], vocab_size: int) -> None:
        self._post = post
        self._vocab_size = vocab_size
        self._cache = TokenCache()
        self._parsed_in_text: re.Pattern[str] | None = None

    async def encode(self, parts: PromptParts) -> list[int]:
        content = cut_apart(join_texts(parts), self._parsed_in_text)
        texts = dict.fromkeys(part for part in content if isinstance(part, str))
        known = self._cache.known(texts)
        if unknown := [text for text in texts if text not in known]:
            new = await self._tokenize_each(unknown)
            self._cache.put(new)
            known |= new
        return [token for part in content for token in (known[part] if isinstance(part, str) else (part,))]

    async def decode(self, token_ids: Sequence[int]) -> str:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(f"there is no token {token_id}: the vocabulary ends at {self._vocab_size - 1}")
        answer = await self._post("/detokenize", {"tokens": token_ids})
        return str(answer["content"])

    async def special_ids(self, names: Iterable[str]) -> dict[str, int]:
        """The ids of the names that are one token each, such as `<|im_end|>`.

        The engine finds some of them, such as `<tool_call>`, in plain text, too; from now on `encode` prevents that.
        """
        found = {}
        for name in names:
            ids = await self._tokenize([name], parse_special=True)
            if len(ids) == 1:
                found[name] = ids[0]
        in_text = [name for name in found if [found[name]] == await self._tokenize([name], parse_special=False)]
        self._parsed_in_text = re.compile("|".join(map(re.escape, in_text))) if in_text else None
        return found

    async def single_tokens(self, names: Iterable[str]) -> set[str]:
        """The texts that the engine would read as one token each."""
        return {name for name in names if len(await self._tokenize([name], parse_special=True)) == 1}

    async def _tokenize_each(self, texts: Sequence[str]) -> dict[str, Sequence[int]]:
        """Tokenize all texts in one request. Numbers between the texts are returned unchanged, so they separate the ids."""
        content = [part for text in texts for part in (text, BORDER)]
        ids = iter(await self._tokenize(content, parse_special=False))
        return {text: list(takewhile(lambda token: token != BORDER, ids)) for text in texts}

    async def _tokenize(self, content: Sequence[str | int], *, parse_special: bool) -> list[int]:
        answer = await self._post("/tokenize", {"content": content, "parse_special": parse_special})
        ids: list[int] = answer["tokens"]
        return ids


def join_texts(parts: PromptParts) -> list[str | int]:
    """Join neighbouring texts: the ids must not show where a part ended. Lone surrogates become `?`."""
    joined: list[str | int] = []
    for part in parts:
        if isinstance(part, int):
            joined.append(part)
            continue
        text = part.encode(errors="replace").decode()
        if joined and isinstance(joined[-1], str):
            joined[-1] += text
        else:
            joined.append(text)
    return joined


def cut_apart(parts: Sequence[str | int], unwanted: re.Pattern[str] | None) -> list[str | int]:
    """Cut each text inside every string that must not be found in it."""
    if unwanted is None:
        return list(parts)
    cut: list[str | int] = []
    for part in parts:
        if isinstance(part, int):
            cut.append(part)
            continue
        places = [0, *(match.start() + 1 for match in unwanted.finditer(part)), len(part)]
        cut += [part[start:end] for start, end in pairwise(places)]
    return cut
