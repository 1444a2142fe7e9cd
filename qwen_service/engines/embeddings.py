"""Embeddings of texts, by a separate GGUF model in a separate llama.cpp process, started at the first request."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen_service.engines.rest import Rest
from qwen_service.errors import (
    Died,
    NotOffered,
    PromptTooLong,
    QueueFull,
    ShuttingDown,
    StartFailed,
    Unavailable,
    UnknownModel,
)
from qwen_service.models.catalog import Catalog, gguf_model, is_called, unaliased
from qwen_service.models.installed import InstalledModel
from qwen_service.runtimes.llamacpp import wire
from qwen_service.runtimes.llamacpp.process import LlamaProcess, check_gguf, thread_count
from qwen_service.runtimes.llamacpp.runtime import error_object
from qwen_service.runtimes.local_http import HttpError
from qwen_service.settings import Settings

CONTEXT = 2048  # tokens of one text, unless the settings or the model say another number
TIMEOUT = 120.0  # seconds for one text
# Open WebUI sends each piece of a document in its own request, all at once, and never retries: so the total length of
# waiting texts is bounded, not the number of requests.
MOST_WAITING = 16_000_000  # characters, or token ids
Input = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result: for each input one vector of length 1."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    tokens: int


class Embeddings:
    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        """`catalog` is searched for the name in `embedding_model`, or for any embedding model when it is not set."""
        self._settings = settings
        self._catalog = catalog
        self._model: InstalledModel | None = None  # the model that the process runs
        self._process: LlamaProcess | None = None
        self._limit = 0  # tokens of one text
        self._closing = 0  # tokens that the tokenizer adds after a text; some models take the vector of the last token
        self._turn = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._start_task: asyncio.Task[LlamaProcess] | None = None
        self._stopped = False
        self._waiting = 0
        # Its memory is freed when nobody has asked for `unload_when_idle` seconds; the next request starts it again.
        self._rest = Rest(
            keep_for=settings.unload_when_idle or None,
            is_allowed=True,
            is_loaded=lambda: True,
            unload=self._unload,
            load=lambda: None,
        )

    async def embed(
        self, model: str | None, inputs: Sequence[Input], *, truncate: bool = False, dimensions: int | None = None
    ) -> Embedded:
        """Embed the inputs. Raises NotOffered, UnknownModel, PromptTooLong, QueueFull, or the engine's failure."""
        name = self._check(model)
        size = sum(map(len, inputs))
        if self._waiting and self._waiting + size > MOST_WAITING:
            raise QueueFull(
                f"Texts of {self._waiting} characters are waiting for their vectors already. Try again later."
            )
        self._waiting += size
        try:
            with self._rest.in_use():
                await self._rest.wake()
                ids = [await self._ids(one, truncate) for one in inputs]
                vectors = [await self._vector(one, dimensions) for one in ids]
        finally:
            self._waiting -= size
        return Embedded(name, tuple(vectors), sum(map(len, ids)))

    async def stop(self) -> None:
        """Stop the process, also one that is just starting. Nothing starts afterwards."""
        self._stopped = True
        await self._rest.end()
        if (starting := self._start_task) is not None and not starting.cancel():
            self._process = None if starting.exception() else starting.result()
        if starting is not None:
            await asyncio.wait([starting])
        await self._unload()

    async def _unload(self) -> None:
        if (process := self._process) is not None:
            self._process = None
            await process.stop()

    def _check(self, model: str | None) -> str:
        """Check the requested name, and return the name of the model that answers."""
        found = (self._model if self._process is not None else None) or self._find()
        if found is None:
            raise NotOffered(
                "There is no model for embeddings here. `qwen-service pull qwen3-embedding-0.6b` installs one (639 MB);"
                " `embedding_model` names another, or a GGUF file."
            )
        wanted = unaliased(model, self._settings.model_aliases) if model else found.name
        if not is_called(found.spec, wanted) and self._settings.unknown_model == "error":
            raise UnknownModel(wanted, f"The model for embeddings is {found.name}.")
        return found.name

    def _find(self) -> InstalledModel | None:
        """Find the file or installed model that `embedding_model` names; without it the first installed embedding model."""
        given, catalog = self._settings.embedding_model, self._catalog
        if given is None:
            models = catalog.installed() if catalog is not None else []
            return next((model for model in models if "embedding" in model.capabilities), None)
        if given.is_file() or catalog is None or given.suffix == ".gguf":
            return gguf_model(given)
        try:
            model = catalog.find_installed(str(given))
        except UnknownModel as error:
            raise Unavailable(f"embedding_model: {error.message}") from error
        if model.spec.runtime != "llamacpp":
            raise Unavailable(
                f"embedding_model: {model.name} runs on the card. Name a GGUF model: embeddings are made on the CPU."
            )
        return model

    async def _ids(self, text: Input, truncate: bool) -> Sequence[int]:
        ids: Sequence[int]
        if isinstance(text, str):
            ids = (await self._post("/tokenize", {"content": text, "add_special": True}))["tokens"]
        else:
            ids = text
        await self._running()  # the running process knows the limit
        limit, closing = self._limit, self._closing if isinstance(text, str) else 0
        if len(ids) <= limit:
            return ids
        if not truncate:
            raise PromptTooLong(
                f"The input has {len(ids)} tokens; the model takes at most {limit}. Send shorter pieces.", param="input"
            )
        return [*ids[: limit - closing], *ids[len(ids) - closing :]]

    async def _vector(self, ids: Sequence[int], dimensions: int | None) -> tuple[float, ...]:
        answer = await self._post("/v1/embeddings", {"input": ids})
        vector = answer["data"][0]["embedding"][:dimensions]
        length = math.hypot(*vector) or 1.0
        return tuple(value / length for value in vector)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Send one request at a time, so that TIMEOUT covers the work and not the waiting."""
        async with self._turn:
            return await self._answer(await self._running(), path, body)

    async def _answer(self, process: LlamaProcess, path: str, body: dict[str, Any]) -> Any:
        try:
            return await process.http.post(path, body, TIMEOUT)
        except HttpError as error:
            raise wire.refusal(error.status, error_object(error.body)) from error
        except OSError as error:
            if self._process is process:
                self._process = None  # the next request starts a new process
                await process.stop()
            raise Died(f"The engine for embeddings failed: {error}. The next request starts it again.") from error

    async def _running(self) -> LlamaProcess:
        async with self._starting:
            if self._process is None:
                if self._stopped:
                    raise ShuttingDown("the service is stopping")
                if self._start_task is None:  # otherwise a client that has left began the start
                    self._start_task = asyncio.create_task(self._start(), name="start embeddings")
                await asyncio.wait([self._start_task])
                started, self._start_task = self._start_task, None
                if started.cancelled():
                    raise ShuttingDown("the service is stopping")
                self._process = started.result()
            return self._process

    async def _start(self) -> LlamaProcess:
        model = self._find()
        if model is None:
            raise NotOffered("The model for embeddings has been removed. `qwen-service pull` installs one.")
        bound = self._settings.context_size or CONTEXT
        context = min(bound, model.spec.context or bound)
        process = await self._started(model, context)
        try:
            await self._measure(process, context)
        except (OSError, HttpError) as error:
            await process.stop()
            raise StartFailed(
                f"The engine for embeddings came up, but failed at once: {error}. The next request starts it again."
            ) from error
        except BaseException:  # cancelled
            await process.stop()
            raise
        self._model = model
        return process

    async def _measure(self, process: LlamaProcess, context: int) -> None:
        properties = await process.http.get("/props", TIMEOUT)
        self._limit = min(context, properties["default_generation_settings"]["n_ctx"])
        bare, whole = [
            (await process.http.post("/tokenize", {"content": "a", "add_special": special}, TIMEOUT))["tokens"]
            for special in (False, True)
        ]
        self._closing = len(whole) - len(bare) - whole.index(bare[0]) if bare and bare[0] in whole else 0

    async def _started(self, model: InstalledModel, context: int) -> LlamaProcess:
        settings = self._settings
        check_gguf(model.gguf)
        pooling = settings.embedding_pooling if settings.embedding_pooling != "model" else model.spec.pooling
        return await LlamaProcess.start(
            llama_server=settings.llama_server,
            model_path=model.gguf,
            options={
                "--parallel": 1,
                "--ctx-size": context,  # a text must be computed in one step
                "--batch-size": context,
                "--ubatch-size": context,
                "--threads": thread_count(settings.threads),
                "--cache-ram": 0,
            },
            flags=["--embeddings", *(["--pooling", pooling] if pooling else [])],
            state_dir=settings.state_folder,
            log_path=settings.log_folder / "embeddings.log",
        )
