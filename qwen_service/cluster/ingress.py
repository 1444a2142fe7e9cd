"""The HTTP side of a cluster: the service without an engine, with all dialects, pages, health and keys.

The text tools of its models run here, or on another machine where their engine is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

from fastapi import FastAPI

from qwen_service.app import create_app
from qwen_service.chat import PromptParts
from qwen_service.cluster.node import node_settings
from qwen_service.cluster.remote_runtime import RemoteRuntime
from qwen_service.cluster.roster import Roster
from qwen_service.cluster.settings import ClusterSettings
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.errors import ServiceError, Unsupported
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.operation import logs
from qwen_service.runtime import LoadProgress
from qwen_service.runtimes.axera.bring_up import CardText
from qwen_service.runtimes.axllm.bring_up import model_text
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat


class Ingress:
    """The ingress. The router looks for `roster` here. `replicas` is the handle of the CardReplica deployment."""

    def __init__(self, cluster: ClusterSettings, replicas: Any) -> None:
        self.roster = Roster()
        self._cluster = cluster
        self._replicas = replicas
        self._first_report: Any = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        read = partial(ingress_settings, self._cluster)
        settings = read()
        settings.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.configure(settings.log_level, settings.log_format, settings.service_log)
        return create_app(
            settings, loaders=self._loaders, read_settings=read, shut_down=_refuse_shutdown, replicas=self.roster
        )

    def _loaders(self, model: InstalledModel, settings: Settings, _machine: Machine) -> dict[str, BringUp]:
        return {model.name: partial(self._bring_up, model, settings)}

    async def _bring_up(self, model: InstalledModel, settings: Settings, progress: LoadProgress) -> Engine:
        if self._first_report is None:  # the first call makes Ray create the router, which then updates the roster
            self._first_report = self._replicas.report.remote()
        generate = self._replicas.options(stream=True).generate
        runtime = RemoteRuntime(generate.remote, self.roster, waits=settings.queue_timeout)
        limits = await runtime.start(progress)
        text = await text_of(model, self._replicas, progress)
        return Engine(runtime, limits, text, slots_now=lambda: self.roster.slots)


def ingress_settings(cluster: ClusterSettings) -> Settings:
    """The settings of its node, without watching cards and warming, which only an engine needs."""
    shared = node_settings(cluster)
    return node_settings(
        cluster,
        state_dir=shared.state_dir / "ingress",
        log_dir=shared.log_dir / "ingress" if shared.log_dir is not None else None,
        accelerator="auto",
        npu_poll_interval=0,
        warm="off",
    )


def _refuse_shutdown() -> NoReturn:
    raise Unsupported("A cluster is stopped by `qwen-service cluster stop`.")


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
