"""One model on one card, or on the CPU, of a node, with the same supervisor and runtime as on a single machine."""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray

from qwen_service.card.monitor import CardMonitor, card_monitor
from qwen_service.cluster.node import Place, claim_place
from qwen_service.cluster.settings import ClusterSettings
from qwen_service.cluster.tally import Tally
from qwen_service.cluster.wire import Item, Report, Work
from qwen_service.engine import Engine
from qwen_service.engines.choice import ModelChoice
from qwen_service.engines.loaders import loaders_for
from qwen_service.engines.simulation import simulated
from qwen_service.engines.supervisor import Supervisor
from qwen_service.errors import Died, Loading, ProtocolError, ServiceError, Stalled
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.operation import logs
from qwen_service.settings import Settings
from qwen_service.text.template import ChatTemplate

log = logging.getLogger(__name__)


class CardReplica:
    """A replica. Its constructor returns when the first load has ended, so a rolling deployment waits for each card.

    It also returns when the load fails. The supervisor then tries again, and the report says so: a process that
    Ray kills and starts again would only begin the same load again.
    """

    async def __init__(self, cluster: ClusterSettings, node: str = "") -> None:  # type: ignore[misc]  # Ray awaits it
        self._node = node or node_name()
        self._place: Place = await claim_place(cluster)
        settings = self._place.settings
        for folder in (settings.state_folder, settings.log_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.configure(
            settings.log_level, settings.log_format, settings.service_log, tokenizer_file=settings.tokenizer_log
        )
        machine = Machine()
        self._monitor = _monitor(settings, machine)
        self._model = await asyncio.to_thread(_model, settings, machine)
        self._tally = Tally(self._model.spec)
        ((name, bring_up),) = loaders_for(self._model, settings, machine).items()
        self._supervisor: Supervisor = Supervisor(name, bring_up, on_change=lambda: None)
        self._supervisor.start()
        await self._supervisor.first_load_done.wait()

    async def generate(self, work: Work) -> AsyncGenerator[Item, None]:
        """Generate. Ray closes the iterator when the caller cancels, which stops the card."""
        try:
            async with aclosing(self._generate(work)) as items:
                async for item in items:
                    yield item
        except ServiceError as error:
            yield error

    async def _generate(self, work: Work) -> AsyncGenerator[Item, None]:
        engine = self._engine()
        try:
            with self._tally.of(work, engine.limits.slots) as entry:
                async with aclosing(engine.runtime.generate(work.prompt, work.sampling)) as items:
                    async for item in items:
                        entry.add(item)
                        yield item
        except (Died, Stalled, ProtocolError) as failure:
            self._supervisor.report(engine, failure)
            raise

    async def encode(self, parts: list[str | int]) -> list[int] | ServiceError:
        try:
            return await self._engine().text.tokenizer.encode(parts)
        except ServiceError as error:
            return error

    def template(self) -> ChatTemplate | ServiceError:
        try:
            return self._engine().text.template
        except ServiceError as error:
            return error

    def record_routing_stats(self) -> dict[str, Any]:
        """The report for the routers. Ray calls this every `report_period`."""
        return {"report": self.report()}

    def report(self) -> Report:
        supervisor, tally = self._supervisor, self._tally
        engine = supervisor.engine
        return Report(
            node=self._node,
            place=self._place.name,
            model=self._model.name,
            phase=supervisor.phase,
            progress=supervisor.progress,
            error=supervisor.last_error,
            restarts=supervisor.restarts,
            paused=self._pause_reason(engine),
            temperature=self._temperature(engine),
            limits=engine.limits if engine is not None else None,
            capabilities=engine.runtime.capabilities if engine is not None else None,
            running=tally.running,
            held=tally.held(engine) if engine is not None else (),
            per_id=tally.per_id,
            per_reply=tally.per_reply,
            tokens_per_second=tally.tokens_per_second,
            idle=tally.idle,
            seen=tuple(tally.seen),
        )

    async def __del__(self) -> None:
        """Stop the engine. Ray awaits this when it replaces or stops the replica, after running replies have ended."""
        await self._supervisor.stop()
        if self._monitor is not None:
            await self._monitor.stop()
        self._place.lock.release()

    def _engine(self) -> Engine:
        if (engine := self._supervisor.engine) is None:
            state = f"{self._supervisor.phase} {self._supervisor.progress}".strip()
            raise Loading(
                f"{self._place.name} of {self._node} is {state}", retry_after=self._model.spec.load_seconds or 5
            )
        return engine

    def _pause_reason(self, engine: Engine | None) -> str:
        return self._monitor.pause_reason(engine.devices) if self._monitor is not None and engine is not None else ""

    def _temperature(self, engine: Engine | None) -> float | None:
        if self._monitor is None or engine is None:
            return None
        statuses = [self._monitor.statuses[device] for device in engine.devices if device in self._monitor.statuses]
        return next((s.card.temperature for s in statuses if s.card.temperature is not None), None)


def _model(settings: Settings, machine: Machine) -> InstalledModel:
    if settings.simulate:
        return simulated(settings.simulate, settings)
    return ModelChoice(settings, Catalog.load(settings.models_dir), machine).installed(settings.model)


def _monitor(settings: Settings, machine: Machine) -> CardMonitor | None:
    monitor = card_monitor(settings, machine, on_change=lambda: None)
    if monitor is not None:
        monitor.start(settings.npu_poll_interval)
    return monitor


def node_name() -> str:
    """The name of this node: the one given by `ray start --node-name`, else the host name."""
    here = ray.get_runtime_context().get_node_id()
    node: dict[str, str] = next((node for node in ray.nodes() if node["NodeID"] == here), {})
    name, address = node.get("NodeName", ""), node.get("NodeManagerAddress", "")
    return name if name and name != address else socket.gethostname()
