"""qwen-service cluster: many cards behind one address, on Ray Serve.

On the first machine:  cluster start --head, then cluster deploy
On each further one:   cluster start --join ADDRESS-OF-THE-FIRST
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from qwen_service.api.access import is_loopback
from qwen_service.cluster.node import node_settings
from qwen_service.cluster.ray_command import (
    MARK,
    PORT,
    PORTS,
    ClusterError,
    as_shell,
    node_environment,
    start_arguments,
)
from qwen_service.cluster.settings import FILE as CLUSTER_FILE
from qwen_service.cluster.settings import ClusterSettings, load_cluster_settings
from qwen_service.cluster.token import demand_token, make_token, token_file
from qwen_service.commands.become import become
from qwen_service.commands.cluster_node import node_from, session_folder
from qwen_service.commands.cluster_status import HEADINGS, as_json, cells, faults, model_of, rows
from qwen_service.commands.model_table import print_columns
from qwen_service.commands.progress import catalog_from
from qwen_service.commands.settings import make_folders
from qwen_service.config import load_settings, settings_file
from qwen_service.process.marked import end_marked, marked

CURRENT = "ray_current_cluster"  # Ray's file with the address of the head
HEAD_ENDS_LAST = ("gcs_server",)  # the other processes report to it when they end, and would hang without it


def add_cluster_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cluster",
        help="many cards behind one address",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_start(actions)
    _add_deploy(actions)
    status_parser = _add(actions, "status", "show every card: what it serves, holds and how fast it is", status)
    status_parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    pulling = _add(actions, "pull", "download a model on every machine of the cluster", pull)
    pulling.set_defaults(models_dir=None)
    pulling.add_argument("model", help="name of the model; `qwen-service list --all` shows them")
    _add(actions, "stop", "end what `cluster start` has started on this machine", stop)


def _add(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of this machine")
    parser.set_defaults(run=run)
    return parser


def _add_start(actions: Any) -> None:
    parser = _add(actions, "start", "make this machine the head of a cluster, or let it join one", start)
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="begin a cluster")
    role.add_argument("--join", metavar="ADDRESS", help="the head's address, with :PORT if it is not 6379")
    parser.add_argument("--address", metavar="IP", help="this machine's address (default: the one towards the others)")
    parser.add_argument("--port", type=int, default=PORT, help=f"first of {PORTS} ports (default: {PORT})")
    parser.add_argument("--cards", type=int, metavar="N", help="use N cards instead of all that are found")
    parser.add_argument("--i-know", action="store_true", help="allow --address 0.0.0.0")
    parser.add_argument("--block", action="store_true", help="keep running until Ray ends, for systemd")


def _add_deploy(actions: Any) -> None:
    parser = _add(actions, "deploy", "serve a model on all cards, or change how it is served", deploy)
    parser.add_argument("file", nargs="?", type=Path, metavar="cluster.yaml", help="settings of the cluster")
    parser.add_argument("--model", metavar="NAME", help="serve this model instead of the file's")
    parser.add_argument("--host", metavar="IP", help="serve at this address of this machine instead of the file's")
    parser.add_argument(
        "--http-port", dest="http_port", type=int, metavar="PORT", help="serve at this port instead of the file's"
    )


def start(options: argparse.Namespace) -> int:
    """Replace this process by `ray start`. Raises ClusterError or ConfigError."""
    settings = load_settings({}, config_file=options.config)
    node = node_from(options, settings)
    demand_ray()
    make_folders(settings)
    if marked(MARK, str(settings.state_folder)):
        raise ClusterError("This machine is already a node of a cluster. Stop that first: qwen-service cluster stop")
    assert node.folder is not None
    (node.folder / CURRENT).unlink(missing_ok=True)  # left by a cluster that has ended; Ray would refuse to start
    token = token_file(os.environ)
    if not node.head and make_token(token):
        print(f"Made {token}, the secret of the cluster: copy it to each machine that is to join.")
    demand_token(token, node.head.partition(":")[0])
    config = settings_file(options.config)
    environment = node_environment(node, settings.state_folder, config.absolute() if config.is_file() else None)
    arguments = start_arguments(node)
    cards = f"cards {', '.join(map(str, node.cards))}" if node.cards else "no card"
    print(f"This machine has {cards} and the address {node.address}.")
    print(f"Ports {node.port} to {node.port + PORTS - 1} must be open between the nodes, and to nobody else.")
    if not node.head:
        place = node.address if node.port == PORT else f"{node.address}:{node.port}"
        print(
            f"Next: on other machines `qwen-service cluster start --join {place}`, here `qwen-service cluster deploy`."
        )
    print(as_shell(arguments, environment), flush=True)
    return become([sys.executable, "-m", "ray.scripts.scripts", *arguments], os.environ | environment)


def deploy(options: argparse.Namespace) -> int:
    """Deploy the application. Raises ClusterError or ConfigError."""
    given = {"model": options.model, "host": options.host, "port": options.http_port}
    if options.file is not None and not options.file.is_file():
        raise ClusterError(f"{options.file} does not exist: expected the file with the settings of the cluster.")
    cluster = load_cluster_settings(options.file or CLUSTER_FILE, **given)
    _warn_of_exposure(cluster)
    with _cluster(options):
        place = f"http://{cluster.host}:{cluster.port}"
        print(f"serve.run({cluster.model}) at {place}: the first card is ready when its model is loaded.", flush=True)
        import_module("qwen_service.cluster.deployments").deploy(cluster)
    print(f"{cluster.model} answers at {place}. `qwen-service cluster status` shows the cards.")
    return 0


def _warn_of_exposure(cluster: ClusterSettings) -> None:
    if not is_loopback(cluster.host) and node_settings(cluster).api_keys_file is None:
        text = f"everybody who reaches {cluster.host} can use the cluster. Set api_keys_file (docs/cluster.md)."
        print(f"Warning: {text}", file=sys.stderr)


def status(options: argparse.Namespace) -> int:
    """Print the table. Returns 1 when something is wrong. Raises ClusterError."""
    with _cluster(options) as cluster:
        nodes, engines = cluster.nodes(), cluster.engines()
    model = model_of(engines)
    wrong = list(faults(nodes, engines, model))
    if options.json:
        print(json.dumps(as_json(nodes, engines, model), indent=1, ensure_ascii=False))
    else:
        print_columns([HEADINGS, *map(cells, rows(nodes, engines))])
        print("".join(f"\n{line}" for line in wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


def pull(options: argparse.Namespace) -> int:
    """Pull on all nodes at once. Returns 1 when one has failed. Raises ClusterError."""
    failed = set()
    catalog_from(options).find(options.model)
    with _cluster(options) as cluster:
        for node, line, is_fault in cluster.pull_everywhere(options.model):
            print(f"{node}: {line}", flush=True)
            failed |= {node} if is_fault else set()
    if failed:
        raise ClusterError(
            f"{options.model} is not on {', '.join(sorted(failed))}. Run the same command to continue there."
        )
    print(f"{options.model} is on every machine.")
    return 0


@contextmanager
def _cluster(options: argparse.Namespace) -> Iterator[Any]:
    """The module qwen_service.cluster.nodes, connected to the cluster of this machine."""
    demand_ray()
    settings = load_settings({}, config_file=options.config)
    current = session_folder(settings) / CURRENT
    if not (marked(MARK, str(settings.state_folder)) and current.is_file()):
        raise ClusterError(
            "This machine is no node of a cluster. Make it one first: qwen-service cluster start --head | --join"
        )
    demand_token(token_file(os.environ))
    os.environ["RAY_AUTH_MODE"] = "token"
    nodes = import_module("qwen_service.cluster.nodes")
    address = current.read_text().strip()
    print(f"ray.init({address!r})", file=sys.stderr)
    with nodes.connected(address):
        yield nodes


def stop(options: argparse.Namespace) -> int:
    """Stop this machine's node. Other Rays on the machine go on, which `ray stop` would end, too."""
    settings = load_settings({}, config_file=options.config)
    print("Ending the processes that `ray start` made here (`ray stop` would end every Ray of this machine).")
    ended, stuck = end_marked(MARK, str(settings.state_folder), last=HEAD_ENDS_LAST)
    if stuck:
        raise ClusterError(f"{stuck} processes are stuck in the kernel: a card may hang. Run `qwen-service doctor`.")
    print(f"Ended {ended} processes." if ended else "This machine was no node of a cluster.")
    return 0


def demand_ray() -> None:
    """Raise ClusterError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError("Ray is not installed. Install it with: pip install 'qwen-service[ray]'")
