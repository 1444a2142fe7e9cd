"""When `serve` runs at a terminal without its model: asks whether to install it now."""

from importlib import import_module

from qwen_service.commands.questions import Questions, at_terminal
from qwen_service.models.catalog import Catalog, is_called
from qwen_service.settings import Settings


def offer_model(settings: Settings) -> None:
    """Raises an InstallError when the download fails, and KeyboardInterrupt."""
    if not at_terminal() or settings.model_path or settings.simulate or settings.runtime_join:
        return
    catalog = Catalog.load(settings.models_dir.expanduser())
    installed = {model.name for model in catalog.chatting()}
    if settings.model == "auto":
        missing, name, question = not installed, None, "No model is installed yet. Choose one now?"
    else:
        known = (spec.name for spec in catalog.specs if is_called(spec, settings.model))
        name = next(known, None)
        missing, question = name is not None and name not in installed, f"{name} is not installed. Download it now?"
    if missing and Questions().confirm(question):
        # Imported when needed: the download code takes 20 MB of memory.
        import_module("qwen_service.commands.setup").install_first(settings, name)
