"""Random conversations on one card: in every turn the KV cache holds exactly the prompt, and cached_tokens is true."""

import random
from pathlib import Path

import pytest

from qwen_service.text.tokenizer import LocalTokenizer
from tests.simulated_card import SimulatedCard, prompt, simulated_card

START, END, NEWLINE, THINK, END_THINK, TWO_NEWLINES = 151644, 151645, 198, 151667, 151668, 271
USER, ASSISTANT, SYSTEM = 872, 77091, 8948
NO_THINKING = [THINK, TWO_NEWLINES, END_THINK, TWO_NEWLINES]
LIMIT = 2048


class Conversation:
    """Ids as Qwen3's template lays them out; a reply of ours goes back as the ids that were generated."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.history = self._message(SYSTEM, 120) if dice.random() < 0.7 else []
        self._points: list[int] = []  # where each turn began
        self._question: list[int] = []

    def next_prompt(self) -> list[int]:
        """A new question, mostly; sometimes the last one again, or with the history cut back and asked otherwise."""
        choice = self._dice.random()
        if self._points and choice < 0.3:
            turn = -1 if choice < 0.15 else self._dice.randrange(len(self._points))
            self.history = self.history[: self._points[turn]]
            del self._points[turn:]
        if not self._question or choice >= 0.15:
            self._question = self._message(USER, 1 + int(self._dice.expovariate(1 / 60)))
        if len(self.history) + len(self._question) > LIMIT - 10:
            self.history, self._points = [], []
        self._points.append(len(self.history))
        self.history += [*self._question[: LIMIT - 10], START, ASSISTANT, NEWLINE, *NO_THINKING]
        return list(self.history)

    def add(self, reply: list[int]) -> None:
        self.history += [*reply, END, NEWLINE]

    def _message(self, role: int, length: int) -> list[int]:
        return [START, role, NEWLINE, *(self._dice.randrange(1000, 90000) for _ in range(length)), END, NEWLINE]


async def talk(card: SimulatedCard, conversation: Conversation, dice: random.Random) -> None:
    ids = conversation.next_prompt()
    promised = card.runtime.reusable_tokens(prompt(ids))
    reply = await card.ask(ids, max_tokens=dice.choice([4, 500, 500, 500]))
    conversation.add(reply.ids)
    events = card.events()
    prompts = [event["kv"] for event in events if event["event"] == "prompt"]
    computed = sum(event.get("computed", 0) for event in events)
    assert prompts == [ids]
    assert reply.cached == len(ids) - computed == promised


async def run(folder: Path, tokenizer: LocalTokenizer, *, conversations: int, seed: int) -> None:
    """Three at a time, their turns in any order, until all have had their number of turns."""
    dice = random.Random(seed)
    waiting = [(Conversation(dice), dice.randrange(2, 9)) for _ in range(conversations)]
    clients = [waiting.pop() for _ in range(3)]
    async with simulated_card(folder, tokenizer, SIM_REPLY="varied") as card:
        await card.start()
        card.events()
        while clients:
            index = dice.randrange(len(clients)) if dice.random() < 0.5 else 0
            conversation, turns = clients[index]
            await talk(card, conversation, dice)
            clients[index] = (conversation, turns - 1)
            if turns == 1:
                clients[index : index + 1] = [waiting.pop()] if waiting else []


@pytest.fixture(scope="module")
def tokenizer(qwen_tokenizer_folder: Path) -> LocalTokenizer:
    return LocalTokenizer(qwen_tokenizer_folder)


async def test_in_every_turn_the_kv_cache_holds_exactly_the_prompt(tmp_path: Path, tokenizer: LocalTokenizer) -> None:
    await run(tmp_path, tokenizer, conversations=15, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_in_every_turn_of_200_conversations_the_kv_cache_holds_exactly_the_prompt(
    tmp_path: Path, tokenizer: LocalTokenizer
) -> None:
    await run(tmp_path, tokenizer, conversations=200, seed=2)
