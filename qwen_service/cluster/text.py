"""The text tools of a model whose engine is on another machine."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from qwen_service.engine import ModelText
from qwen_service.errors import ServiceError
from qwen_service.models.installed import InstalledModel
from qwen_service.runtime import LoadProgress, PromptParts
from qwen_service.runtimes.axera.card_text import CardText
from qwen_service.runtimes.axllm.bring_up import model_text
from qwen_service.text.output_format import OutputFormat


class RemoteTokenizer:
    """Any replica's. `encode` is a call of the deployment's handle; an error of our tree is its answer."""

    def __init__(self, encode: Callable[[list[str | int]], Awaitable[Any]]) -> None:
        self._encode = encode

    async def encode(self, parts: PromptParts) -> list[int]:
        ids: list[int] = unless_error(await self._encode(list(parts)))
        return ids


async def text_of(model: InstalledModel, replicas: Any, progress: LoadProgress) -> ModelText:
    """A card's model has its tokenizer beside it, on this node, too. A GGUF's is inside the engine: a replica is asked."""
    if model.spec.runtime == "llamacpp":
        progress("waiting for an engine, which knows the template")
        template = unless_error(await replicas.template.remote())
        return ModelText(RemoteTokenizer(replicas.encode.remote), template, OutputFormat.of_template(template.source))
    if model.spec.runtime == "axllm":
        return await asyncio.to_thread(model_text, model)
    tokenizer, template = await CardText(model).read(progress)
    return ModelText(tokenizer, template, OutputFormat.of_template(template.source))


def unless_error(answer: Any) -> Any:
    if isinstance(answer, ServiceError):
        raise answer
    return answer
