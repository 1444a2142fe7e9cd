"""The catalog of models: finds a ModelSpec by name or alias, and knows which models are installed.

Manifests come with the package; the owner's are read from `<models_dir>/manifests/*.yaml` and win over
packaged ones of the same name. A GGUF file, or a folder in axllm's form (config.json), that lies in
models_dir without a manifest is a model, too, named after the file or folder.
"""

import difflib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from qwen_service.errors import InstallError, UnknownModel
from qwen_service.models.axllm_shape import CONFIG, read_config
from qwen_service.models.installed import InstalledModel, cannot_read, is_closed, is_mmproj, status
from qwen_service.models.manifest import ManifestError, read_manifest
from qwen_service.models.spec import FileSpec, ModelSpec

LIBRARY = "library/"
SETTLED = 100_000_000  # ns
PACKAGED = Path(__file__).parents[1] / "manifests"


_State = tuple[tuple[str, int, int], ...]  # (name, time of the last change in ns, size)


@dataclass
class _Kept:
    """The models found last. `state` is None when they must be looked up again."""

    state: _State | None = None
    models: tuple[InstalledModel, ...] = ()


@dataclass(frozen=True)
class Catalog:
    specs: tuple[ModelSpec, ...]
    models_dir: Path
    _kept: _Kept = field(default_factory=_Kept, compare=False, repr=False)

    @classmethod
    def load(cls, models_dir: Path) -> "Catalog":
        """Read all manifests. Raises ManifestError when one is wrong or unreadable, or two models claim one name.

        Raises InstallError when this user may not look into models_dir.
        """
        if is_closed(models_dir):
            raise InstallError(f"models_dir: {cannot_read(models_dir)}")
        by_name = {spec.name: spec for spec in _read_folder(PACKAGED)}
        by_name.update((spec.name, spec) for spec in _read_folder(models_dir / "manifests"))
        specs = tuple(by_name.values())
        _refuse_double_names(specs)
        return cls(specs, models_dir)

    def find(self, name: str) -> ModelSpec:
        """Find a spec by name or alias, case-insensitive, with or without `:latest`. UnknownModel lists the names."""
        known = {spec.name for spec in self.specs}
        others = (model.spec for model in self.installed() if model.name not in known)
        specs = (*self.specs, *others)
        found = next((spec for spec in specs if is_called(spec, name)), None)
        if found is None:
            raise _unknown(name, specs, "Models known: {}.")
        return found

    def find_installed(self, name: str, models: Sequence[InstalledModel] | None = None) -> InstalledModel:
        """By name or alias, among `models` or all that are installed.

        UnknownModel says what is missing of a model that is there in part, and how to get one that is not.
        """
        models = self.installed() if models is None else models
        for model in models:
            if is_called(model.spec, name):
                return model
        known = next((spec for spec in self.specs if is_called(spec, name)), None)
        if known is None:
            alias = "For an app with a fixed name: `model_aliases` gives an installed model that name."
            raise _unknown(name, [model.spec for model in models], f"Models here: {{}}. {alias}")
        self._refuse_incomplete(known)
        here = ", ".join(model.name for model in models) or "none"
        raise UnknownModel(
            name,
            f"{name} is not installed. `qwen-service pull {known.name}` installs it. Models here: {here}.",
            whole=True,
        )

    def installed(self) -> list[InstalledModel]:
        """The complete models, in the catalog's order, then those without a manifest.

        Reads the files again only when a folder has changed, because each request for a list of models calls this.
        """
        state = self._folders()
        if self._kept.state != state:
            self._kept.state, self._kept.models = None, self._look()
            if _is_at_rest(state) and not self._has_incomplete():
                self._kept.state = state
        return list(self._kept.models)

    def chatting(self) -> list[InstalledModel]:
        """The installed models that write text: all but those made for embeddings."""
        return [model for model in self.installed() if model.spec.chats]

    def unreadable(self) -> list[Path]:
        """What is there of models, but this user may not read."""
        models = (InstalledModel(spec, self.models_dir / spec.name) for spec in self.specs)
        return [path for model in models if (path := model.unreadable()) is not None]

    def _look(self) -> tuple[InstalledModel, ...]:
        in_catalog = (InstalledModel(spec, self.models_dir / spec.name) for spec in self.specs)
        return (*(model for model in in_catalog if not model.missing_files()), *self._without_manifest())

    def _has_incomplete(self) -> bool:
        """Whether a model may still be in the middle of being copied: a growing file does not change its folder's time."""
        there = {model.folder for model in self._kept.models}
        return any(
            (folder := self.models_dir / spec.name) not in there and os.path.isdir(folder) for spec in self.specs
        )

    def _folders(self) -> _State:
        """The entries of models_dir, with the times at which the folders changed."""
        try:
            with os.scandir(self.models_dir) as found:
                entries = [(entry.name, entry.stat()) for entry in found if not _is_broken_link(entry)]
        except OSError:
            return ()
        state = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in entries]
        there = {name for name, _ in entries}
        for spec in self.specs:
            if spec.name in there:
                state += (_changed(self.models_dir / spec.name / folder) for folder in spec.folders)
        return tuple(sorted(state))

    def _refuse_incomplete(self, spec: ModelSpec) -> None:
        model = InstalledModel(spec, self.models_dir / spec.name)
        if (closed := model.unreadable()) is not None:
            raise UnknownModel(spec.name, cannot_read(closed), whole=True)
        if os.path.isdir(model.folder) and (missing := model.missing_files()):
            raise UnknownModel(
                spec.name,
                f"{spec.name} is not complete: files that are missing or of another size: {len(missing)}"
                f" ({missing[0]}). `qwen-service pull {spec.name}` fetches them.",
                whole=True,
            )

    def _without_manifest(self) -> Iterator[InstalledModel]:
        known = {spec.name for spec in self.specs}
        for path in sorted(self.models_dir.glob("*")):
            if path.suffix == ".gguf" and status(path) and not is_mmproj(path):
                yield gguf_model(path)
            elif path.name.lower() not in known and _is_axllm_folder(path):
                yield axllm_model(path)


def _is_at_rest(state: _State) -> bool:
    """False right after a change: a second change within the clock's step would leave the same time."""
    return time.time_ns() - max((changed for _, changed, _ in state), default=0) > SETTLED


def _is_broken_link(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _changed(folder: Path) -> tuple[str, int, int]:
    try:
        stat = folder.stat()
    except OSError:  # missing or unreadable: the check of its files reports it
        return (str(folder), 0, 0)
    return (str(folder), stat.st_mtime_ns, stat.st_size)


def gguf_model(path: Path) -> InstalledModel:
    """Make the spec of a GGUF file. The engine reads from the file what it can do.

    It has vision if its encoder lies beside it: `mmproj-NAME.gguf`, or `NAME.mmproj.gguf`.
    """
    found = status(path)
    file = FileSpec(path.name, found.st_size if found is not None else None)
    beside = (f"mmproj-{path.name}", f"{path.stem}.mmproj.gguf")
    eyes = [FileSpec(name) for name in beside if status(path.with_name(name))]
    quantization = re.search(r"(?:^|[.-])(I?Q\d\w*|F16|BF16|F32)$", path.stem, re.IGNORECASE)
    spec = ModelSpec(
        name=_name_from(path.stem),
        runtime="llamacpp",
        files=(file, *eyes[:1]),
        title=path.stem,
        quantization=quantization[1].upper() if quantization else "",
    )
    return InstalledModel(spec, path.parent)


def axllm_model(folder: Path) -> InstalledModel:
    """Make the spec of a folder for `axllm serve`, which its config.json describes."""
    spec = ModelSpec(
        name=_name_from(folder.name),
        runtime="axllm",
        files=(FileSpec("config.json"),),
        title=folder.name,
        arguments=("serve", "{folder}", "--port", "{port}"),
    )
    return InstalledModel(spec, folder)


def same_name(one: str, other: str) -> bool:
    return plain_name(one) == plain_name(other)


def is_called(spec: ModelSpec, name: str) -> bool:
    """By its name or an alias, in any case, with or without `:latest`."""
    return any(same_name(name, known) for known in spec.names)


def unaliased(name: str, aliases: Mapping[str, str]) -> str:
    """Resolve `model_aliases` of the configuration. An exact name wins over a pattern."""
    for alias, meant in aliases.items():
        if same_name(alias, name):
            return meant
    return next((meant for alias, meant in aliases.items() if fnmatchcase(plain_name(name), plain_name(alias))), name)


def plain_name(name: str) -> str:
    """The name without Ollama's registry and library prefixes."""
    name = name.strip().lower().removesuffix(":latest")
    for origin in ("registry.ollama.ai/", "ollama.com/"):
        if name.startswith(origin + LIBRARY):
            name = name.removeprefix(origin)
    return name.removeprefix(LIBRARY)


def _unknown(name: str, specs: Sequence[ModelSpec], there_is: str) -> UnknownModel:
    """`there_is`: a sentence with a place for the names."""
    names = ", ".join(spec.name for spec in specs) or "none; `qwen-service setup` chooses and installs one"
    near = difflib.get_close_matches(plain_name(name), [known for spec in specs for known in spec.names], n=1)
    question = f"Did you mean {near[0]}? " if near else ""
    return UnknownModel(name, question + there_is.format(names))


def _read_folder(folder: Path) -> list[ModelSpec]:
    return [read_manifest(path) for path in sorted(folder.glob("*.yaml"))]


def _refuse_double_names(specs: Iterable[ModelSpec]) -> None:
    owners: dict[str, str] = {}
    for spec in specs:
        for name in map(plain_name, spec.names):
            if owners.setdefault(name, spec.name) != spec.name:
                raise ManifestError(f"Two models are called {name}: {owners[name]} and {spec.name}. Rename one alias.")


def _is_axllm_folder(folder: Path) -> bool:
    try:
        return read_config((folder / CONFIG).read_bytes()) is not None
    except OSError:
        return False  # not a folder, or no config.json of axllm's: ignored


def _name_from(stem: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"
