"""The text tools of a model whose engine runs on another machine."""

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
    """A tokenizer that asks any replica. `encode` calls the deployment's handle; a ServiceError is returned as a value."""

    def __init__(self, encode: Callable[[list[str | int]], Awaitable[Any]]) -> None:
        self._encode = encode

    async def encode(self, parts: PromptParts) -> list[int]:
        ids: list[int] = unless_error(await self._encode(list(parts)))
        return ids


async def text_of(model: InstalledModel, replicas: Any, progress: LoadProgress) -> ModelText:
    """The text tools: a card's model has its tokenizer file on this node, too; a GGUF's tokenizer is in the engine."""
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
