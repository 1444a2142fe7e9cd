"""Removes installed models."""

import shutil

from qwen_service.errors import InstallError
from qwen_service.models.catalog import Catalog
from qwen_service.models.installed import InstalledModel


def on_disk(catalog: Catalog, name: str) -> InstalledModel:
    """Find a model on disk, even an incomplete one, which can still be inspected and removed. Raises UnknownModel."""
    spec = catalog.find(name)
    folder = catalog.models_dir / spec.name
    return InstalledModel(spec, folder) if folder.is_dir() else catalog.find_installed(name)


def remove_model(catalog: Catalog, model: InstalledModel) -> int:
    """Remove the model. Returns the number of bytes freed."""
    freed = model.size
    try:
        if model.folder == catalog.models_dir:
            for path in model.paths():
                path.unlink()
        else:
            shutil.rmtree(model.folder)
    except OSError as error:
        raise InstallError(f"{model.name} cannot be removed: {error.strerror}: {error.filename}") from error
    return freed
