"""Builds the `ray start` command of one node: its arguments and environment. Imports nothing of Ray.

All ports of a node lie between `port` and `port + PORTS - 1`, so that a firewall needs one rule.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_service.errors import ServiceError

CARD = "axera_card"  # Ray's resource: one for each card of a node
PORT = 6379  # Ray's default
PORTS = 60
WORKER_PORTS = 10  # offset of the first one from `port`: there is one for each replica, proxy and task
OBJECT_STORE_BYTES = 80_000_000  # little data goes through it: replies are streamed, prompts have a few kilobytes
# Ray gives its proxy three times 5 s to start, too little for a Pi that reads the libraries from an SD card.
SLOW_START = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
MARK = "QWEN_SERVICE_CLUSTER"  # set in the environment of every process of a node, to the node's state folder
LONGEST_FOLDER = 43  # characters: Ray adds 64 for its sockets, and a socket's path has at most 107


class ClusterError(ServiceError):
    """A command about the cluster cannot be carried out. The message has the cure."""


@dataclass(frozen=True, slots=True)
class Node:
    """The node to start. `head`: host:port of the head to join; empty for the head itself."""

    address: str
    head: str = ""
    port: int = PORT
    cards: tuple[int, ...] = ()  # card numbers
    folder: Path | None = None  # Ray's sockets, logs and spilled objects; None: Ray's own choice
    block: bool = False  # run until a part of the node ends, for systemd


def start_arguments(node: Node) -> list[str]:
    """The arguments after `ray`. Dashboard, log monitor and autoscaler are off: they take 285 MB and are not used."""
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
    """Variables for `ray start`, added to the inherited environment. They never contain the token itself."""
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
    """The same command as one line for a shell."""
    return shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), "ray", *arguments])
