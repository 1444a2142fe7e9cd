"""Vectors of texts, from a GGUF of their own in a llama.cpp of its own, which is started when first asked for."""

import asyncio
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_service.errors import Died, NotOffered, PromptTooLong, QueueFull, ShuttingDown, UnknownModel
from qwen_service.models.catalog import Catalog, gguf_model, same_name, unaliased
from qwen_service.runtimes.llamacpp import wire
from qwen_service.runtimes.llamacpp.process import LlamaProcess, check_gguf
from qwen_service.runtimes.llamacpp.runtime import error_object
from qwen_service.runtimes.llamacpp.unix_http import HttpError
from qwen_service.settings import Settings

TIMEOUT = 120.0  # seconds for one request
Input = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Of each input one vector of length 1."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


class Embeddings:
    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        """`catalog`: where a name in `embedding_model` is looked up."""
        self._settings = settings
        self.name, self._path = _model(settings.embedding_model, catalog)
        self._process: LlamaProcess | None = None
        self._starting = asyncio.Lock()
        self._start_task: asyncio.Task[LlamaProcess] | None = None
        self._stopped = False
        self._asked = 0

    async def embed(
        self, model: str | None, inputs: Sequence[Input], *, truncate: bool = False, dimensions: int | None = None
    ) -> Embedded:
        """Raises NotOffered, UnknownModel, PromptTooLong, QueueFull, or why the engine could not."""
        self._check(model)
        if self._asked >= self._settings.queue_size + 1:
            raise QueueFull(f"{self._asked} requests for embeddings are waiting already")
        self._asked += 1
        try:
            ids = [await self._ids(one, truncate) for one in inputs]
            vectors = [await self._vector(one, dimensions) for one in ids]
        finally:
            self._asked -= 1
        return Embedded(tuple(vectors), sum(map(len, ids)))

    async def stop(self) -> None:
        """Ends a start that is under way as well; nothing starts afterwards."""
        self._stopped = True
        if (starting := self._start_task) is not None and not starting.cancel():
            self._process = None if starting.exception() else starting.result()
        if starting is not None:
            await asyncio.wait([starting])
        if self._process is not None:
            await self._process.stop()
            self._process = None

    def _check(self, model: str | None) -> None:
        if self._path is None:
            raise NotOffered("This service has no model for embeddings: `embedding_model` names a GGUF file of one.")
        wanted = unaliased(model, self._settings.model_aliases) if model else self.name
        if not same_name(wanted, self.name) and self._settings.unknown_model == "error":
            raise UnknownModel(f"model '{model}' not found; the model for embeddings is {self.name}", param="model")

    async def _ids(self, text: Input, truncate: bool) -> Sequence[int]:
        ids: Sequence[int]
        if isinstance(text, str):
            ids = (await self._post("/tokenize", {"content": text, "add_special": True}))["tokens"]
        else:
            ids = text
        limit = self._settings.context_size
        if len(ids) > limit and not truncate:
            raise PromptTooLong(f"the input has {len(ids)} tokens, at most {limit} are taken", param="input")
        return ids[:limit]

    async def _vector(self, ids: Sequence[int], dimensions: int | None) -> tuple[float, ...]:
        answer = await self._post("/v1/embeddings", {"input": ids})
        vector = answer["data"][0]["embedding"][:dimensions]
        length = math.hypot(*vector) or 1.0
        return tuple(value / length for value in vector)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        process = await self._running()
        try:
            return await process.http.post(path, body, TIMEOUT)
        except HttpError as error:
            raise wire.refusal(error.status, error_object(error.body)) from error
        except OSError as error:
            if self._process is process:
                self._process = None  # the next request starts another one
                await process.stop()
            raise Died(f"the engine for embeddings failed: {error}") from error

    async def _running(self) -> LlamaProcess:
        async with self._starting:
            if self._process is None:
                if self._stopped:
                    raise ShuttingDown("the service is stopping")
                if self._start_task is None:  # else it is that of a client who has left
                    self._start_task = asyncio.create_task(self._start(), name="start embeddings")
                await asyncio.wait([self._start_task])
                started, self._start_task = self._start_task, None
                if started.cancelled():
                    raise ShuttingDown("the service is stopping")
                self._process = started.result()
            return self._process

    async def _start(self) -> LlamaProcess:
        settings = self._settings
        assert self._path is not None
        check_gguf(self._path)
        context = settings.context_size  # a text is computed in one step
        pooling = settings.embedding_pooling
        return await LlamaProcess.start(
            llama_server=settings.llama_server,
            model_path=self._path,
            options={
                "--parallel": 1,
                "--ctx-size": context,
                "--batch-size": context,
                "--ubatch-size": context,
                "--threads": settings.threads or max(1, (os.cpu_count() or 1) - 1),
                "--cache-ram": 0,
            },
            flags=["--embeddings", *(["--pooling", pooling] if pooling != "model" else [])],
            state_dir=settings.state_folder,
            log_path=settings.log_folder / "embeddings.log",
        )


def _model(given: Path | None, catalog: Catalog | None) -> tuple[str, Path | None]:
    """Name and file, of a file or of the name of an installed model. What is neither is told when it is first used."""
    if given is None:
        return "", None
    if catalog is not None and not given.is_file():
        with suppress(UnknownModel):
            model = catalog.find_installed(str(given))
            if model.spec.runtime == "llamacpp":
                return model.name, model.gguf
    return gguf_model(given).name, given
