"""Which model runs where: choosing one at start, finding the one a request means, stopping.

A model is served by one supervisor per device. Restarting is the supervisor's business, waiting lines are the
scheduler's.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_service.catalog import Catalog, gguf_model, same_name
from qwen_service.config import Settings
from qwen_service.errors import Loading, NotLoaded, ServiceError, Unavailable, UnknownModel
from qwen_service.installed_model import InstalledModel
from qwen_service.machine import Machine
from qwen_service.model_loading import Loaders, loaders_for
from qwen_service.model_spec import ModelSpec
from qwen_service.supervisor import Engine, Phase, Supervisor

_STATES: dict[Phase, str] = {
    "ready": "loaded",
    "loading": "loading",
    "restarting": "loading",
    "failed": "failed",
    "stopped": "installed",
}
PATIENCE_FOR_LOADING = 10.0  # seconds: a model that loads longer than this is not waited for, but refused with 503


@dataclass(eq=False)
class ServedModel:
    installed: InstalledModel
    supervisors: tuple[Supervisor, ...]
    draining: bool = False
    waiting_for_load: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        return self.installed.name

    @property
    def spec(self) -> ModelSpec:
        return self.installed.spec

    @property
    def phase(self) -> Phase:
        """Of the best of its engines."""
        order: tuple[Phase, ...] = ("ready", "loading", "restarting", "failed", "stopped")
        return min((supervisor.phase for supervisor in self.supervisors), key=order.index)

    @property
    def engine(self) -> Engine | None:
        return next((s.engine for s in self.supervisors if s.engine is not None), None)

    def out_of_service(self) -> ServiceError | None:
        """Why nobody needs to wait for this model; None while it runs or will run again."""
        match self.phase:
            case "failed":
                return Unavailable(f"{self.name} cannot run: {self.supervisors[0].last_error}")
            case "stopped":
                return Loading(f"{self.name} is not running any more", retry_after=10)
            case _:
                return None

    async def ready(self, *, at_most: float, waiters: int) -> Engine:
        """An engine that runs. Waits for a quick load or restart; raises Loading or Unavailable."""
        if (engine := self.engine) is not None:
            return engine
        if (reason := self.out_of_service()) is not None:
            raise reason
        if (self.spec.load_seconds or 0) > PATIENCE_FOR_LOADING or self.waiting_for_load >= waiters:
            raise self._loading()
        self.waiting_for_load += 1
        try:
            async with asyncio.timeout(at_most):
                while self.engine is None and self.out_of_service() is None:
                    await self._a_change()
        except TimeoutError:
            raise self._loading() from None
        finally:
            self.waiting_for_load -= 1
        return await self.ready(at_most=0, waiters=0)

    async def _a_change(self) -> None:
        settled = [asyncio.ensure_future(supervisor.settled()) for supervisor in self.supervisors]
        try:
            await asyncio.wait(settled, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in settled:
                waiting.cancel()

    def _loading(self) -> Loading:
        first = self.supervisors[0]
        how_far = f" ({first.progress})" if first.progress else ""
        why = f" after: {first.last_error}" if first.phase == "restarting" else ""
        return Loading(f"{self.name} is {first.phase}{how_far}{why}", retry_after=self.spec.load_seconds or 5.0)


class ModelManager:
    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        machine: Machine,
        *,
        on_change: Callable[[], None],
        loaders: Loaders = loaders_for,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._machine = machine
        self._on_change = on_change
        self._loaders = loaders
        self.current: ServedModel | None = None
        self.trouble = ""  # why there is no current model

    async def start(self) -> None:
        """Choose a model and begin to load it; returns at once."""
        try:
            chosen = self._choose()
        except ServiceError as error:
            self.trouble = error.message
            return
        self.current = self._serve(chosen)

    async def stop(self) -> None:
        if self.current is not None:
            await asyncio.gather(*(supervisor.stop() for supervisor in self.current.supervisors))

    def find(self, name: str | None) -> ServedModel:
        """The served model that a request means. Raises UnknownModel, NotLoaded or Unavailable."""
        if self.current is None:
            raise Unavailable(self.trouble)
        wanted = self._settings.model_aliases.get(name, name) if name else None
        if not wanted or any(same_name(wanted, known) for known in self.current.spec.names):
            return self.current
        try:
            other = self._catalog.find_installed(wanted)
        except UnknownModel:
            if self._settings.unknown_model == "default":
                return self.current
            raise UnknownModel(
                f"There is no model {name!r}. Models here: {', '.join(m.name for m in self.installed())}.",
                param="model",
            ) from None
        raise NotLoaded(
            f"{other.name} is installed, but {self.current.name} is loaded. An administrator can switch with"
            " POST /v1/models/load.",
            param="model",
        )

    def installed(self) -> list[InstalledModel]:
        models = self._catalog.installed()
        if self.current is not None and self.current.name not in [model.name for model in models]:
            models.insert(0, self.current.installed)
        return models

    def entries(self) -> list[dict[str, Any]]:
        """Installed models with their state, as /v1/models lists them."""
        return [self._entry(model) for model in self.installed()]

    def _entry(self, model: InstalledModel) -> dict[str, Any]:
        served = self.current if self.current is not None and self.current.name == model.name else None
        engine = served.engine if served is not None else None
        return {
            "id": model.name,
            "object": "model",
            "created": int(model.modified),
            "owned_by": "qwen-service",
            "aliases": list(model.spec.aliases),
            "state": _STATES[served.phase] if served is not None else "installed",
            "runtime": model.spec.runtime,
            "version": model.digest[:12],
            "size": model.size,
            "context": engine.limits.context if engine is not None else model.spec.context,
            "sampling": sorted(engine.runtime.capabilities.sampling) if engine is not None else [],
        }

    def _choose(self) -> InstalledModel:
        if self._settings.model_path is not None:
            return gguf_model(self._settings.model_path.expanduser().absolute())
        if self._settings.model != "auto":
            return self._catalog.find_installed(self._settings.model)
        for model in self._catalog.installed():
            if model.spec.obstacle(self._machine) is None:
                return model
        raise Unavailable(
            f"no model is installed in {self._catalog.models_dir}. `qwen-service pull smollm2-135m` installs a small one."
        )

    def _serve(self, model: InstalledModel) -> ServedModel:
        loaders = self._loaders(model, self._settings, self._machine)
        supervisors = tuple(Supervisor(name, load, on_change=self._on_change) for name, load in loaders.items())
        for supervisor in supervisors:
            supervisor.start()
        return ServedModel(model, supervisors)
