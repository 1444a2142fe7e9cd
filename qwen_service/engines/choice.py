"""Chooses which installed models this machine can run, and which one is served first."""

from collections.abc import Sequence

from qwen_service.errors import Unavailable
from qwen_service.models.catalog import Catalog, gguf_model, unaliased
from qwen_service.models.installed import InstalledModel, cannot_read
from qwen_service.models.machine import Machine
from qwen_service.models.spec import NO_NPU
from qwen_service.settings import Settings


class ModelChoice:
    def __init__(self, settings: Settings, catalog: Catalog, machine: Machine) -> None:
        self._settings = settings
        self._catalog = catalog
        self._machine = machine

    def first(self) -> InstalledModel:
        """Choose the model to serve at the start. Raises UnknownModel, or Unavailable with the reason against each."""
        settings = self._settings
        if settings.model_path is not None:
            model = gguf_model(settings.model_path.expanduser().absolute())
        elif settings.model != "auto":
            model = self.installed(settings.model)
        else:
            return self._first_possible(self._catalog.chatting())
        if not self._lacks_card_only(model):
            self.refuse_impossible(model)
        return model

    def installed(self, name: str) -> InstalledModel:
        """By name or alias. Raises UnknownModel."""
        return self._catalog.find_installed(unaliased(name, self._settings.model_aliases))

    def refuse_impossible(self, model: InstalledModel) -> None:
        if (obstacle := self._obstacle(model)) is not None:
            raise Unavailable(f"{model.name} cannot be served: {obstacle}")

    def _lacks_card_only(self, model: InstalledModel) -> bool:
        """Whether only the card is missing. Such a model is started if no other is wanted: the card may appear later."""
        return self._settings.accelerator != "none" and model.spec.lacks_card_only(self._machine)

    def _first_possible(self, models: Sequence[InstalledModel]) -> InstalledModel:
        """Choose among the possible models: the card's first, stopgaps last; one without its card only if nothing else can run."""
        models = sorted(models, key=lambda model: (bool(model.spec.stopgap), not model.spec.needs_npu))
        obstacles = {model.name: self._obstacle(model) for model in models}
        possible = [model for model in models if obstacles[model.name] is None]
        if found := next(iter([*possible, *filter(self._lacks_card_only, models)]), None):
            return found
        reasons = [f"{name}: {obstacle}" for name, obstacle in obstacles.items()]
        if self._settings.accelerator == "required" and not self._machine.has_npu:
            reasons.append(NO_NPU)
        raise Unavailable("; ".join(reasons) or self._nothing_installed())

    def _obstacle(self, model: InstalledModel) -> str | None:
        if not model.spec.chats:
            return "it makes embeddings, and does not chat"
        if self._settings.accelerator == "required" and not model.spec.needs_npu:
            return "it runs on the CPU, and accelerator is required"
        if self._settings.accelerator == "none" and model.spec.needs_npu:
            return "it needs a card, and accelerator is none"
        if (closed := model.unreadable()) is not None:
            return cannot_read(closed)
        return model.spec.obstacle(self._machine)

    def _nothing_installed(self) -> str:
        if closed := self._catalog.unreadable():
            return f"no model can be read: {cannot_read(closed[0])}"
        return f"no model that chats is installed in {self._catalog.models_dir}. `qwen-service setup` chooses one, `qwen-service pull smollm2-135m` installs a small one."
