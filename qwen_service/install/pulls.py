"""Pulls that clients of the service ask for: one at a time per model; any number of clients may follow it.

Each runs in a thread. When its last client has left it stops, and the next pull continues where it was.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib import import_module
from pathlib import Path

from qwen_service.errors import InstallError, ServiceError, ShuttingDown
from qwen_service.install.progress import Progress, ProgressSink
from qwen_service.models.machine import Machine
from qwen_service.models.spec import ModelSpec
from qwen_service.process.daemon_threads import in_daemon_thread

log = logging.getLogger(__name__)

# Imported when needed: the hub's client takes 8 MB of memory, and few services ever pull.
DOWNLOADS = "qwen_service.install.downloads"
INTERVAL = 0.2  # seconds between two reports of progress
STOP_TIMEOUT = 2.0  # seconds


class Pulls:
    def __init__(self, models_dir: Path, machine: Machine) -> None:
        self._models_dir = models_dir
        self._machine = machine
        self._running: dict[str, _Pull] = {}
        self._stopping = False

    async def follow(self, spec: ModelSpec) -> AsyncGenerator[str | Progress, None]:
        """Yield stages and progress until the model is installed. Raises an InstallError."""
        if self._stopping:
            raise ShuttingDown("the service is stopping")
        running = self._running.get(spec.name)
        if running is None:
            running = self._running[spec.name] = _Pull()
            running.task = asyncio.create_task(self._pull(spec, running), name=f"pull {spec.name}")
        running.followers += 1
        try:
            async with aclosing(running.reports()) as reports:
                async for report in reports:
                    yield report
        finally:
            running.followers -= 1

    def abandon(self) -> None:
        """End all pulls because the service stops: their clients are told, and the threads stop at their next step."""
        self._stopping = True
        for running in self._running.values():
            running.stopping.set()
            running.followers = 0

    async def stop(self) -> None:
        """Wait for the threads, at most STOP_TIMEOUT: a thread that hangs on a hub is abandoned."""
        self.abandon()
        tasks = [running.task for running in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pull(self, spec: ModelSpec, running: "_Pull") -> None:
        try:
            await in_daemon_thread(_pull, spec, self._models_dir, self._machine, running)
        except ServiceError as error:
            log.warning("The pull of %s failed: %s", spec.name, error.message)
            if running.followers:
                raise
        finally:
            del self._running[spec.name]


def _pull(spec: ModelSpec, models_dir: Path, machine: Machine, sink: ProgressSink) -> None:
    import_module(DOWNLOADS).pull(spec, models_dir, machine, sink)


class _Pull:
    """One pull, and the ProgressSink of its thread, which calls stage() and update()."""

    def __init__(self) -> None:
        self.followers = 0
        self.stopping = asyncio.Event()
        self.task: asyncio.Task[None]
        self._latest: str | Progress = "pulling manifest"

    def stage(self, text: str) -> None:
        self._latest = text

    def update(self, progress: Progress) -> None:
        if not self.followers:
            raise InstallError(
                "All clients that waited for this pull have left; what was fetched is kept for the next one."
            )
        self._latest = progress

    async def reports(self) -> AsyncGenerator[str | Progress, None]:
        seen: str | Progress | None = None
        while not self.task.done():
            if self._latest is not seen:
                seen = self._latest
                yield seen
            await asyncio.wait({self.task}, timeout=INTERVAL)
            if self.stopping.is_set():
                raise ShuttingDown("the service is stopping; what was fetched is kept for the next pull")
        self.task.result()
