"""A runtime that plays a script, and the pipeline around it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from qwen_service.chat import Sampling
from qwen_service.errors import RuntimeFailure
from qwen_service.runtime import Capabilities, Limits, LoadProgress, Piece, Prefill, Prompt, Runtime

Script = Callable[[Prompt, Sampling], AsyncGenerator[Prefill | Piece, None]]


class ScriptedRuntime(Runtime):
    """Generates what its script yields; `fail_with` makes it fail as a dying process would."""

    capabilities = Capabilities(sampling=frozenset({"temperature", "seed"}))

    def __init__(self, script: Script, *, limits: Limits | None = None) -> None:
        self.script, self.limits = script, limits or Limits(context=256, prompt=255)
        self.prompts: list[Prompt] = []
        self.stopped = 0
        self._failure: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()

    async def start(self, progress: LoadProgress) -> Limits:
        return self.limits

    def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        self.prompts.append(prompt)
        return self.script(prompt, sampling)

    async def failed(self) -> RuntimeFailure:
        return await self._failure

    def fail_with(self, failure: RuntimeFailure) -> None:
        self._failure.set_result(failure)

    async def stop(self) -> None:
        self.stopped += 1


class LetterTokenizer:
    """One token per character: its code point. Special tokens keep their ids."""

    async def encode(self, parts: Sequence[str | int]) -> list[int]:
        return [i for part in parts for i in ([part] if isinstance(part, int) else map(ord, part))]

    async def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))
