"""A rendered prompt: tokenized; or, when it is clearly too long, its estimated number of tokens."""

from dataclasses import dataclass

from qwen_service.engine import ModelText
from qwen_service.runtime import PromptParts, Spelled

HOPELESS_BYTES_PER_TOKEN = 16  # a text with more bytes per token of room than this cannot fit; usual are 2 to 5
_CHEAP = 100_000  # characters that are tokenized in about 0.1 s, whatever they are


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt. `ending` is its last text; `estimate`: number of tokens of a prompt that was not tokenized.

    `beside`: tokens reserved for pictures.
    """

    ids: list[int]
    ending: str
    estimate: int = 0
    beside: int = 0
    spelled: tuple[Spelled, ...] = ()

    @property
    def size(self) -> int:
        return (self.estimate or len(self.ids)) + self.beside


async def count_or_encode(text: ModelText, parts: PromptParts, most: int) -> Rendered:
    """Tokenize, or estimate a text that is clearly longer than `most` tokens: tokenizing 4 MB would take seconds."""
    size, enough = _characters(parts), HOPELESS_BYTES_PER_TOKEN * most
    if size > max(_CHEAP, 4 * enough):
        beginning = _beginning(parts, enough)
        tokens = len(await text.tokenizer.encode(beginning))
        if tokens > 2 * most:  # so much too long that the first cut does not matter
            return Rendered([], _ending(text, parts), estimate=round(tokens * size // _characters(beginning), -3))
    return Rendered(await text.tokenizer.encode(parts), _ending(text, parts))


def _ending(text: ModelText, parts: PromptParts) -> str:
    """The last text of a prompt, with special tokens by name. It shows whether the reply starts inside <think>."""
    return text.template.spell(parts[-4:])[-64:]


def _characters(parts: PromptParts) -> int:
    return sum(len(part) for part in parts if isinstance(part, str))


def _beginning(parts: PromptParts, characters: int) -> PromptParts:
    beginning: list[str | int] = []
    for part in parts:
        if characters <= 0:
            break
        beginning.append(part[:characters] if isinstance(part, str) else part)
        characters -= len(part) if isinstance(part, str) else 0
    return beginning
