"""A real Ray cluster of several nodes on this machine, each with a simulated card."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster

from qwen_service.cluster.deployments import ROUTER, deploy
from qwen_service.cluster.ray_command import CARD, SLOW_START
from qwen_service.cluster.settings import ClusterSettings
from tests.card_service import CardHost, free_ports

MODEL = "qwen3-4b-here"
STORE = 80_000_000  # bytes
ATTEMPTS = 3


@dataclass
class LocalCluster:
    """`nodes` are those with a card; the head has none. All share this machine's folders: a card is claimed by a lock."""

    host: CardHost
    cluster: Cluster
    settings: ClusterSettings
    cards: int
    nodes: dict[str, Any] = field(default_factory=dict)  # by name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def add_missing_nodes(self) -> None:
        for number in range(self.cards):
            if (name := f"pi-{number}") not in self.nodes:
                self.nodes[name] = _node(self.cluster, name, resources={CARD: 1})

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def deploy(self, *, router: str = ROUTER, **changed: Any) -> None:
        deploy(self.settings.model_copy(update=changed), router=router)

    def workers(self, *marks: str) -> dict[str, list[int]]:
        """The processes of Ray on our nodes, by the mark that their title has; the raylets, too."""
        nodes = [self.cluster.head_node, *self.nodes.values()]
        raylets = [info.process.pid for node in nodes for info in node.all_processes["raylet"]]
        found: dict[str, list[int]] = {mark: [] for mark in marks} | {"raylet": raylets}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                title = (stat.parent / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has just ended
                continue
            for mark in marks:
                if parent in raylets and mark in title:
                    found[mark].append(int(stat.parent.name))
        return found

    async def until_ready(self, replicas: int) -> None:
        """Return when the ingress knows so many that work, and no other."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http, asyncio.timeout(180):
            while True:
                health = (await http.get("/health")).json()
                states = [view["state"] for view in health["details"]["replicas"] if view["state"] != "gone"]
                if states == ["ready"] * replicas and health["status"] != "down":  # the ingress reads its tokenizer
                    return
                await asyncio.sleep(0.2)


@contextmanager
def local_cluster(
    folder: Path,
    tokenizer: Path,
    *,
    cards: int,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[LocalCluster]:
    host = CardHost(folder, tokenizer, free_ports(8))
    host.weather(cards=[{} for _ in range(cards)])
    host.install(MODEL)
    port = free_ports(1)
    service = {
        "models_dir": str(host.models), "state_dir": str(folder / "state"), "devices": tuple(range(cards)),
        "runtime_port": host.ports, "axcl_smi": sys.executable, "npu_poll_interval": 0, "tokenizer_port": 0, "queue_size": 8,
        **(settings or {}),
    }  # fmt: skip
    cluster_settings = ClusterSettings(model=MODEL, port=port, report_period=0.2, longest_reply=20, service=service)
    before, on_sigterm = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **SLOW_START, **(environment or {})})
    cluster = Cluster()
    local = LocalCluster(host, cluster, cluster_settings, cards)
    try:
        _node(cluster, "head")
        local.add_missing_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        local.deploy()
        yield local
    finally:
        if ray.is_initialized():  # else Ray would start a cluster to shut it down
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own for each node


def _node(cluster: Cluster, name: str, **offers: Any) -> Any:
    """Ray gives a node 30 seconds to come up, which a busy machine does not always keep: then it is tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return cluster.add_node(
                num_cpus=1, object_store_memory=STORE, node_name=name, include_dashboard=False, **offers
            )
        except Exception as error:  # it has no other class
            if attempt == ATTEMPTS or "timed out during startup" not in str(error):
                raise
    raise AssertionError
