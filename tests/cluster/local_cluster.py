"""A real Ray cluster of several nodes on this machine, each with a simulated card."""

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

from qwen_service.cluster.deployments import deploy
from qwen_service.cluster.ray_command import CARD
from qwen_service.cluster.settings import ClusterSettings
from tests.card_service import CardHost, free_ports

MODEL = "qwen3-4b-here"
STORE = 80_000_000  # bytes


@dataclass
class LocalCluster:
    """`nodes` are those with a card; the head has none. All share this machine's folders: a card is claimed by a lock."""

    host: CardHost
    cluster: Cluster
    settings: ClusterSettings
    nodes: dict[str, Any] = field(default_factory=dict)  # by name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def add_node(self, name: str) -> None:
        self.nodes[name] = self.cluster.add_node(
            num_cpus=1, resources={CARD: 1}, object_store_memory=STORE, node_name=name, include_dashboard=False
        )

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def deploy(self) -> None:
        deploy(self.settings)

    def health(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=30).json()
        return document


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
        "runtime_port": host.ports, "axcl_smi": sys.executable, "npu_poll_interval": 0, "queue_size": 8,
        **(settings or {}),
    }  # fmt: skip
    cluster_settings = ClusterSettings(model=MODEL, port=port, report_period=0.2, longest_reply=20, service=service)
    before, on_sigterm = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", **(environment or {})})
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False, "node_name": "head"},
    )
    local = LocalCluster(host, cluster, cluster_settings)
    try:
        for number in range(cards):
            local.add_node(f"pi-{number}")
        ray.init(address=cluster.address, log_to_driver=False)
        local.deploy()
        yield local
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own for each node
