"""Measures llama.cpp on this machine: one prompt of about 600 tokens and a greedy reply of 64."""

from contextlib import aclosing
from dataclasses import dataclass

from qwen_service.chat import ChatRequest, Finished, Message, Sampling
from qwen_service.engines.waiting_room import Patience, WaitingRoom
from qwen_service.errors import StartFailed
from qwen_service.service import Service
from qwen_service.settings import Settings

PROMPT = "Summarize in three sentences. " + " ".join(
    f"On day {day} the boat left at {day % 12} o'clock with {day * 7} crates, and the crew wrote down wind and weather."
    for day in range(1, 25)
)
REPLY_TOKENS = 64
LOADING = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Tokens per second."""

    prefill: float
    decode: float

    def __str__(self) -> str:
        return f"reads {self.prefill:.0f}, writes {self.decode:.1f} tokens/s"


async def measure(settings: Settings) -> EngineSpeed:
    """Measure the model and the engine of the settings. Raises a ServiceError."""
    service = Service(settings)
    try:
        await service.start()
        model = await service.models.obtain(None)
        await model.ready(WaitingRoom(1, LOADING), Patience(LOADING))
        await _ask(service, "Warm up.", 4)
        return await _ask(service, PROMPT, REPLY_TOKENS)
    finally:
        await service.stop()


async def _ask(service: Service, text: str, tokens: int) -> EngineSpeed:
    sampling = Sampling(max_tokens=tokens, temperature=0)
    request = ChatRequest(id="speed", messages=(Message("user", text),), sampling=sampling)
    async with aclosing(service.chat.stream(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                read = event.usage.prompt_tokens - event.usage.cached_tokens
                times = event.timings
                return EngineSpeed(
                    read / max(times.prefill, 1e-6), event.usage.completion_tokens / max(times.generation, 1e-6)
                )
    raise StartFailed("The engine gave no reply to the question of the measurement.")
