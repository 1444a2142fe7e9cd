"""The `ray start` of one node of a cluster: its arguments and its environment. Imports nothing of Ray.

All ports of a node lie between `port` and `port + PORTS - 1`, so that a firewall needs one rule.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_service.errors import ServiceError

CARD = "axera_card"  # the resource: one for each card of a node
PORT = 6379  # Ray's usual one
PORTS = 60
WORKER_PORTS = 10  # the first of them, counted from `port`: one for each replica, proxy and task
OBJECT_STORE_BYTES = 80_000_000  # little goes through it: replies are streamed, prompts are a few kilobytes
# Ray gives its proxy 5 s to be ready, three times: too few for a Pi that reads the libraries from an SD card.
SLOW_START = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
MARK = "QWEN_SERVICE_CLUSTER"  # in the environment of every process of a node; the value is its state folder
LONGEST_FOLDER = 43  # letters: Ray puts sockets 64 letters deeper, and a socket's path has at most 107


class ClusterError(ServiceError):
    """The cluster cannot do this. The message has the cure."""


@dataclass(frozen=True, slots=True)
class Node:
    """`head`: the host:port to join, empty for the head itself."""

    address: str
    head: str = ""
    port: int = PORT
    cards: tuple[int, ...] = ()  # their numbers
    folder: Path | None = None  # Ray's sockets, logs and spilled objects; None: Ray's own choice
    block: bool = False  # stay, and end when a part of the node ends: for systemd


def start_arguments(node: Node) -> list[str]:
    """What follows `ray`. Without dashboard, log monitor and autoscaler: 285 MB that nobody here would use."""
    place = ["--address", node.head] if node.head else [*_head_arguments(node)]
    resources = json.dumps({CARD: len(node.cards)} if node.cards else {})
    return [
        "start",
        *place,
        *("--node-ip-address", node.address),
        *("--object-manager-port", str(node.port + 1)),
        *("--node-manager-port", str(node.port + 2)),
        *("--dashboard-agent-listen-port", str(node.port + 3)),
        *("--dashboard-agent-grpc-port", str(node.port + 4)),
        *("--runtime-env-agent-port", str(node.port + 5)),
        *("--metrics-export-port", str(node.port + 6)),
        *("--min-worker-port", str(node.port + WORKER_PORTS)),
        *("--max-worker-port", str(node.port + PORTS - 1)),
        *("--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--resources", resources),
        *("--include-log-monitor", "false"),
        "--disable-usage-stats",
        *(["--temp-dir", str(node.folder)] if node.folder else []),
        *(["--block"] if node.block else []),
    ]


def _head_arguments(node: Node) -> list[str]:
    return [
        "--head",
        *("--port", str(node.port)),
        *("--ray-client-server-port", str(node.port + 7)),
        *("--include-dashboard", "false"),
        "--no-monitor",
    ]


def node_environment(node: Node, state_folder: Path, config_file: Path | None) -> dict[str, str]:
    """What `ray start` needs beside the environment that it inherits. The token itself is never in it."""
    values = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        **SLOW_START,
        "DASHBOARD_METRIC_PORT": str(node.port + 8),
        MARK: str(state_folder),
    }
    if node.cards:
        values["QWEN_DEVICES"] = ",".join(map(str, node.cards))
    return values | ({"QWEN_CONFIG": str(config_file)} if config_file else {})


def as_shell(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """One line for a shell, which does the same."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), "ray", *arguments])
