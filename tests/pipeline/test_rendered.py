"""How long a prompt is: counted, or estimated where it is far too long."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from qwen_service.chat import ChatRequest, Message
from qwen_service.engines.served import ServedModel
from qwen_service.errors import PromptTooLong
from qwen_service.pipeline.conversation import Rendered, SessionManager, count_or_encode
from qwen_service.runtime import Limits
from tests.serving import installed, model_text


@dataclass
class CountingTokenizer:
    """One token for `step` characters; special ids stay what they are."""

    step: int = 1
    characters: list[int] = field(default_factory=list)  # of each call

    async def encode(self, parts: Sequence[str | int]) -> list[int]:
        texts = [part for part in parts if isinstance(part, str)]
        self.characters.append(sum(map(len, texts)))
        return [0] * (self.characters[-1] // self.step + len(parts) - len(texts))


async def measured(parts: Sequence[str | int], most: int, step: int = 1) -> tuple[Rendered, list[int]]:
    tokenizer = CountingTokenizer(step)
    return await count_or_encode(replace(model_text(), tokenizer=tokenizer), parts, most), tokenizer.characters


async def test_a_text_that_takes_no_time_is_counted_however_long_it_is() -> None:
    rendered, characters = await measured([1, "x" * 99_000], most=10)
    assert (rendered.size, rendered.estimate, characters) == (99_001, 0, [99_000])


async def test_of_megabytes_the_beginning_is_tokenized_and_the_rest_estimated() -> None:
    rendered, characters = await measured([1, "x" * 4_000_000, 2], most=2000, step=4)
    assert rendered.ids == []
    assert rendered.size == pytest.approx(1_000_000, rel=0.01)
    assert characters == [16 * 2000]


async def test_the_beginning_goes_over_several_parts_and_keeps_their_special_ids() -> None:
    rendered, characters = await measured([1, "x" * 10_000, 2, "y" * 10_000, 3, "z" * 900_000], most=1000)
    assert characters == [16_000]
    assert rendered.size == pytest.approx(920_000, rel=0.01)


async def test_what_could_fit_after_all_is_counted() -> None:
    rendered, characters = await measured(["-" * 1_000_000], most=4000, step=250)
    assert (len(rendered.ids), rendered.estimate, characters) == (4000, 0, [64_000, 1_000_000])


@pytest.mark.parametrize("most", [0, 1])
async def test_a_context_without_room_is_no_special_case(most: int) -> None:
    assert (await measured([1, "x" * 200_000], most))[0].size > most


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
async def test_a_message_of_megabytes_is_refused_by_an_estimate(raw: bool, truncate: bool) -> None:
    tokenizer = CountingTokenizer(5)
    text, long = replace(model_text(), tokenizer=tokenizer), "word " * 400_000
    request = ChatRequest("r1", messages=(Message("user", "Hi"), Message("user", long)), truncate=truncate)
    if raw:
        request = ChatRequest("r1", prompt=long)
    with pytest.raises(PromptTooLong, match=r"has about [34]\d{5} tokens, and this model's context takes 2047 "):
        await SessionManager().fit(ServedModel(installed(), ()), text, Limits(2048, 2047), request)
    assert sum(tokenizer.characters) < 100_000


async def test_a_message_of_megabytes_after_a_known_reply_is_not_tokenized_either() -> None:
    tokenizer = CountingTokenizer()
    text, sessions, model = replace(model_text(), tokenizer=tokenizer), SessionManager(), ServedModel(installed(), ())
    hello, reply = Message("user", "Hi"), Message("assistant", "Hello")
    fitted = await sessions.fit(model, text, Limits(2048, 2047), ChatRequest("r1", messages=(hello,)))
    sessions.remember(model, fitted.prompt, reply, [7, 8])
    request = ChatRequest("r2", messages=(hello, reply, Message("user", "x" * 2_000_000)))
    with pytest.raises(PromptTooLong, match="about 2"):
        await sessions.fit(model, text, Limits(2048, 2047), request)
    assert sum(tokenizer.characters) < 200_000
