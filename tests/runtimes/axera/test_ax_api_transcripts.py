"""From messages to the KV cache: what the model sees is the conversation as its own template writes it, in every turn."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_service.chat import ChatRequest, Message, Sampling
from qwen_service.engine import ModelText
from qwen_service.engines.served import ServedModel
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import ModelSpec
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.runtime import Limits, Piece
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer
from tests.simulated_card import SimulatedCard, simulated_card

NO_THOUGHT = "<think>\n\n</think>\n\n"
LINES = (
    "Hello!",
    "Grüße aus Köln 🦜",
    "1. eins\n2. zwei\n\n3. drei",
    "  indented\n\tcode = {'a': [1, 2]}  ",
    "<|im_end|> is what ends a message",
    "世界你好，今天天气怎么样？",
    "What does <think> mean?",
    "naïve café — “quotes” and trailing space ",
    "word " * 60,
)


class Client:
    """Asks, asks again, and changes what it has asked before."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.messages: list[Message] = [Message("system", dice.choice(LINES))] if dice.random() < 0.5 else []

    def ask(self) -> tuple[Message, ...]:
        asked = [place for place, message in enumerate(self.messages) if message.role == "user"]
        choice = self._dice.random()
        if asked and choice < 0.15:
            del self.messages[asked[-1] + 1 :]  # once more
        elif asked and choice < 0.3:
            del self.messages[self._dice.choice(asked) :]
            self._say()
        else:
            self._say()
        return tuple(self.messages)

    def _say(self) -> None:
        self.messages.append(Message("user", " ".join(self._dice.choices(LINES, k=self._dice.randrange(1, 4)))))


class Service:
    """History, rendering and runtime as the service puts them together."""

    def __init__(self, card: SimulatedCard, tokenizer: LocalTokenizer, limits: Limits) -> None:
        self._card = card
        self._limits = limits
        self._template = ChatTemplate(tokenizer.chat_template, tokenizer.special_ids)
        self._text = ModelText(tokenizer, self._template, OutputFormat())
        self._tokenizer = tokenizer
        self._sessions = SessionManager()
        self.continued = 0  # turns that needed no reset
        self._model = ServedModel(InstalledModel(ModelSpec("qwen3-4b", "ax_api", ()), Path()), ())

    async def turn(self, client: Client) -> None:
        request = ChatRequest("r", messages=client.ask(), thinking=False)
        fitted = await self._sessions.fit(self._model, self._text, self._limits, request)
        sampling = Sampling(max_tokens=fitted.max_tokens)
        pieces = [p async for p in self._card.runtime.generate(fitted.prompt, sampling) if isinstance(p, Piece)]
        reply = Message("assistant", "".join(piece.text for piece in pieces))
        ids = [token for piece in pieces for token in piece.token_ids]
        self._sessions.remember(self._model, fitted.prompt, reply, ids)
        client.messages.append(reply)
        events = list(self._card.seen())
        self.continued += events[0][0] != "reset"
        (seen,) = [kv for event, kv in events if event == "prompt"]
        assert self._spelled(seen) == self._expected(fitted.prompt.request)

    def _expected(self, request: ChatRequest) -> str:
        parts = self._template.render(request.messages, thinking=False)
        return self._template.spell(parts).replace(NO_THOUGHT, "")

    def _spelled(self, ids: list[int]) -> str:
        """Replies go back as they were generated, an empty think block included: it is no part of the transcript."""
        names: Mapping[int, str] = {id_: name for name, id_ in self._template.special_ids.items()}
        text = b"".join(names[id_].encode() if id_ in names else self._tokenizer.to_bytes([id_]) for id_ in ids)
        return text.decode().replace(NO_THOUGHT, "")


async def run(folder: Path, tokenizer: LocalTokenizer, *, conversations: int, seed: int) -> None:
    """Three at a time on one card."""
    dice = random.Random(seed)
    replies = [tokenizer.encode_now([line]) for line in dice.choices(LINES, k=199)]
    async with simulated_card(folder, tokenizer, SIM_REPLY=str(replies)) as card:
        limits = await card.runtime.start(card.progress.append)
        service = Service(card, tokenizer, replace(limits, prompt=700))  # so that long ones are trimmed
        card.events()
        waiting = [(Client(dice), dice.randrange(2, 9)) for _ in range(conversations)]
        clients = [waiting.pop() for _ in range(3)]
        while clients:
            client, turns = clients.pop(dice.randrange(len(clients)) if dice.random() < 0.5 else 0)
            await service.turn(client)
            if turns > 1:
                clients.insert(0, (client, turns - 1))
            elif waiting:
                clients.append(waiting.pop())
    assert service.continued > conversations


async def test_the_model_sees_every_turn_as_its_template_writes_it(tmp_path: Path, tokenizer: LocalTokenizer) -> None:
    await run(tmp_path, tokenizer, conversations=12, seed=3)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_the_model_sees_every_turn_of_200_conversations_as_its_template_writes_it(
    tmp_path: Path, tokenizer: LocalTokenizer
) -> None:
    await run(tmp_path, tokenizer, conversations=200, seed=4)
