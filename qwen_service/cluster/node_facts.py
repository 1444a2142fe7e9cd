"""Facts about one node, and pulls on it. This code runs on the node, with its settings. Needs no Ray."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qwen_service.card.reading import Reading, card_reader
from qwen_service.cluster.wire import Report
from qwen_service.config import load_settings
from qwen_service.install.progress import Progress, describe
from qwen_service.install.pulls import Pulls
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Facts about a node. `temperatures`: card number -> degrees C."""

    host: str
    version: str = ""
    models: tuple[str, ...] = ()
    temperatures: tuple[tuple[int, float | None], ...] = ()
    fault: str = ""  # what is wrong with its cards, in plain words


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as seen from outside. `facts` is None when the node does not answer; `fault` says why."""

    id: str
    address: str
    alive: bool
    cards: int
    facts: NodeFacts | None = None
    fault: str = ""
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine as seen from outside. `report` is None while its process cannot answer."""

    node: str  # id of its node; empty while Ray looks for a free card
    state: str  # Ray Serve's state: STARTING, RUNNING, ...
    report: Report | None = None


def look_at_this_node() -> NodeFacts:
    """Collect the facts. Raises ConfigError."""
    settings = load_settings()
    reading = read_cards(settings)
    return NodeFacts(
        host=socket.gethostname(),
        version=_version(),
        models=tuple(sorted(model.name for model in _catalog(settings).installed())),
        temperatures=tuple((card.index, card.temperature) for card in reading.cards),
        fault=reading.fault,
    )


def read_cards(settings: Settings, machine: Machine | None = None) -> Reading:
    """Read the cards; empty on a machine without cards."""
    machine = machine or Machine()
    if not machine.has_npu:
        return Reading()
    return asyncio.run(card_reader(settings, machine)()) or Reading(fault="Another program holds axcl-smi.")


def pull_on_this_node(name: str) -> Iterator[str]:
    """Yield stages and progress until the model is installed. Raises ServiceError."""
    catalog = _catalog(load_settings())
    reports = Pulls(catalog.models_dir, Machine()).follow(catalog.find(name))

    async def following() -> str | Progress | None:
        return await anext(reports, None)

    with asyncio.Runner() as runner:
        while (report := runner.run(following())) is not None:
            yield report if isinstance(report, str) else describe(report)


def _catalog(settings: Settings) -> Catalog:
    return Catalog.load(Path(settings.models_dir).expanduser())


def _version() -> str:
    try:
        return version("qwen-service")
    except PackageNotFoundError:  # a checkout
        return ""
