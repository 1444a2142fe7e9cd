"""Which models there are: name or alias -> ModelSpec, and which of them are installed.

Manifests come with the package; an owner's own are read from `<models_dir>/manifests/*.yaml` and win over
packaged ones of the same name. A GGUF file, or a folder in axllm's form (config.json), that lies in
models_dir without a manifest is a model of its own, named after the file or folder.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from qwen_service.errors import UnknownModel
from qwen_service.models.installed import InstalledModel
from qwen_service.models.manifest import read_manifest
from qwen_service.models.manifest_section import ManifestError
from qwen_service.models.spec import FileSpec, ModelSpec

LIBRARY = "library/"
PACKAGED = Path(__file__).parents[1] / "manifests"


@dataclass(frozen=True)
class Catalog:
    specs: tuple[ModelSpec, ...]
    models_dir: Path

    @classmethod
    def load(cls, models_dir: Path) -> "Catalog":
        """Raises ManifestError when a manifest is wrong, or two models claim one name."""
        by_name = {spec.name: spec for spec in _read_folder(PACKAGED)}
        by_name.update((spec.name, spec) for spec in _read_folder(models_dir / "manifests"))
        specs = tuple(by_name.values())
        _refuse_double_names(specs)
        return cls(specs, models_dir)

    def find(self, name: str) -> ModelSpec:
        """By name or alias, in any case, with or without `:latest`. UnknownModel lists what there is."""
        specs = (*self.specs, *(model.spec for model in self._without_manifest()))
        return _pick(specs, name, "known")

    def find_installed(self, name: str) -> InstalledModel:
        """By name or alias. UnknownModel says what is missing of a model that is there in part."""
        models = self.installed()
        try:
            spec = _pick(tuple(model.spec for model in models), name, "installed")
        except UnknownModel:
            self._refuse_incomplete(name)
            raise
        return next(model for model in models if model.spec is spec)

    def installed(self) -> list[InstalledModel]:
        """Models whose files are all there, in the catalog's order, then those without a manifest."""
        in_catalog = (InstalledModel(spec, self.models_dir / spec.name) for spec in self.specs)
        return [*(model for model in in_catalog if not model.missing_files()), *self._without_manifest()]

    def _refuse_incomplete(self, name: str) -> None:
        for spec in self.specs:
            model = InstalledModel(spec, self.models_dir / spec.name)
            named = any(same_name(name, known) for known in spec.names)
            if named and model.folder.is_dir() and (missing := model.missing_files()):
                raise UnknownModel(
                    f"{spec.name} is not complete: files that are missing or of another size: {len(missing)}"
                    f" ({missing[0]}). `qwen-service pull {spec.name}` fetches them.",
                    param="model",
                )

    def _without_manifest(self) -> Iterator[InstalledModel]:
        known = {spec.name for spec in self.specs}
        for path in sorted(self.models_dir.glob("*")):
            if path.suffix == ".gguf" and path.is_file():
                yield gguf_model(path)
            elif path.name.lower() not in known and _is_axllm_folder(path):
                yield axllm_model(path)


def gguf_model(path: Path) -> InstalledModel:
    """A model of one GGUF file; what it can do is read from the file by the engine."""
    file = FileSpec(path.name, path.stat().st_size if path.is_file() else None)
    quantization = re.search(r"(?:^|[.-])(I?Q\d\w*|F16|BF16|F32)$", path.stem, re.IGNORECASE)
    spec = ModelSpec(
        name=_name_from(path.stem),
        runtime="llamacpp",
        files=(file,),
        title=path.stem,
        quantization=quantization[1].upper() if quantization else "",
    )
    return InstalledModel(spec, path.parent)


def axllm_model(folder: Path) -> InstalledModel:
    """A folder as `axllm serve` takes it: everything about it is in its config.json."""
    spec = ModelSpec(
        name=_name_from(folder.name),
        runtime="axllm",
        files=(FileSpec("config.json"),),
        title=folder.name,
        arguments=("serve", "{folder}", "--port", "{port}"),
    )
    return InstalledModel(spec, folder)


def same_name(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def unaliased(name: str, aliases: Mapping[str, str]) -> str:
    """The name that `model_aliases` of the configuration gives it, or itself. A name goes before a pattern."""
    for alias, meant in aliases.items():
        if same_name(alias, name):
            return meant
    return next((meant for alias, meant in aliases.items() if fnmatchcase(_plain(name), _plain(alias))), name)


def _plain(name: str) -> str:
    """The name as Ollama understands it: its registry and its library are where any name is from."""
    name = name.strip().lower().removesuffix(":latest")
    for origin in ("registry.ollama.ai/", "ollama.com/"):
        if name.startswith(origin + LIBRARY):
            name = name.removeprefix(origin)
    return name.removeprefix(LIBRARY)


def _pick(specs: tuple[ModelSpec, ...], name: str, state: str) -> ModelSpec:
    for spec in specs:
        if any(same_name(name, known) for known in spec.names):
            return spec
    there_is = ", ".join(spec.name for spec in specs) or "none; `qwen-service pull smollm2-135m` installs a small one"
    raise UnknownModel(f"There is no model {name!r}. Models {state}: {there_is}.", param="model")


def _read_folder(folder: Path) -> list[ModelSpec]:
    return [read_manifest(path) for path in sorted(folder.glob("*.yaml"))]


def _refuse_double_names(specs: Iterable[ModelSpec]) -> None:
    owners: dict[str, str] = {}
    for spec in specs:
        for name in map(_plain, spec.names):
            if owners.setdefault(name, spec.name) != spec.name:
                raise ManifestError(f"Two models are called {name}: {owners[name]} and {spec.name}. Rename one alias.")


def _is_axllm_folder(folder: Path) -> bool:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # not a folder, or of some other kind: not ours to complain about
    return isinstance(content, dict) and "filename_post_axmodel" in content


def _name_from(stem: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"
