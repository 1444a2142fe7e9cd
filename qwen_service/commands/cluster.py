"""qwen-service cluster: many cards behind one address, on Ray Serve.

On the first machine:  cluster start --head, then cluster deploy
On each further one:   cluster start --join ADDRESS-OF-THE-FIRST
"""

import argparse
import asyncio
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from qwen_service.card.reading import AxclSmi, BoardFiles
from qwen_service.cluster.ray_command import (
    LONGEST_FOLDER,
    MARK,
    PORT,
    PORTS,
    ClusterError,
    Node,
    as_shell,
    node_environment,
    start_arguments,
)
from qwen_service.cluster.token import demand_token, make_token, token_file
from qwen_service.commands.settings import make_folders
from qwen_service.config import load_settings, settings_file
from qwen_service.models.machine import Machine
from qwen_service.process.marked import end_marked, marked
from qwen_service.settings import Settings

ELSEWHERE = "198.51.100.1"  # an address of no machine (RFC 5737): the kernel tells by which of ours it would go there
HEAD_ENDS_LAST = ("gcs_server",)  # the others report to it when they end, and hang without it


def add_cluster_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cluster",
        help="many cards behind one address",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_start(actions)
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
    parser.add_argument("--cards", type=int, metavar="N", help="instead of the number of cards that are found")
    parser.add_argument("--i-know", action="store_true", help="allow --address 0.0.0.0")
    parser.add_argument("--block", action="store_true", help="stay, and end if Ray ends: for systemd")


def start(options: argparse.Namespace) -> int:
    """Becomes `ray start`. Raises ClusterError, ConfigError."""
    settings = load_settings({}, config_file=options.config)
    node = _node(options, settings)
    demand_ray()
    make_folders(settings)
    if marked(MARK, str(settings.state_folder)):
        raise ClusterError("This machine is a node already. First: qwen-service cluster stop")
    token = token_file(os.environ)
    if not node.head and make_token(token):
        print(f"Made {token}, the secret of the cluster: copy it to each machine that shall join.")
    demand_token(token, node.head.partition(":")[0])
    config = settings_file(options.config)
    environment = node_environment(node, settings.state_folder, config.absolute() if config.is_file() else None)
    arguments = start_arguments(node)
    print(f"{node.cards or 'No'} card{'' if node.cards == 1 else 's'} on this machine, address {node.address}.")
    print(f"Ports {node.port} to {node.port + PORTS - 1} must be open between the nodes, and to nobody else.")
    if not node.head:
        place = node.address if node.port == PORT else f"{node.address}:{node.port}"
        print(
            f"Next: on other machines `qwen-service cluster start --join {place}`, here `qwen-service cluster deploy`."
        )
    print(as_shell(arguments, environment), flush=True)
    return _become(arguments, os.environ | environment)


def stop(options: argparse.Namespace) -> int:
    """Ends this machine's node, and no other Ray of this machine, as `ray stop` would."""
    settings = load_settings({}, config_file=options.config)
    print("Ending the processes that `ray start` made here (`ray stop` would end every Ray of this machine).")
    ended, stuck = end_marked(MARK, str(settings.state_folder), last=HEAD_ENDS_LAST)
    if stuck:
        raise ClusterError(f"{stuck} processes are stuck in the kernel: a card may hang. `qwen-service doctor` looks.")
    print(f"Ended {ended} processes." if ended else "This machine was no node of a cluster.")
    return 0


def demand_ray() -> None:
    """Raises ClusterError."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError("Ray is not installed. Install it with: pip install 'qwen-service[ray]'")


def _node(options: argparse.Namespace, settings: Settings) -> Node:
    head = ""
    if options.join:
        host, _, port = options.join.partition(":")
        head = f"{_resolved(host)}:{port or PORT}"
    if not 1024 <= options.port <= 65_536 - PORTS:
        raise ClusterError(f"--port {options.port}: expected 1024 to {65_536 - PORTS}, for {PORTS} ports from there.")
    return Node(
        address=_address(options, head.partition(":")[0] or ELSEWHERE),
        head=head,
        port=options.port,
        cards=options.cards if options.cards is not None else found_cards(settings),
        folder=_session_folder(settings),
        block=options.block,
    )


def _address(options: argparse.Namespace, towards: str) -> str:
    if options.address is None:
        return own_address(towards)
    try:
        address = ipaddress.ip_address(options.address)
    except ValueError:
        raise ClusterError(f"--address {options.address}: expected an IP address of this machine.") from None
    if not address.is_unspecified:
        return str(address)
    if not options.i_know:
        raise ClusterError(
            f"--address {address} means every network of this machine, and whoever has the token can run programs here."
            " Name one address, or add --i-know."
        )
    return own_address(towards)  # the others must be told one


def own_address(towards: str) -> str:
    """The address that this machine would have in a talk with the other; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:  # no network
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _resolved(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ClusterError(f"--join {host}: there is no such machine: {error.strerror}.") from None


def found_cards(settings: Settings) -> int:
    machine = Machine()
    if not machine.has_npu:
        return 0
    cards = BoardFiles(machine.root) if machine.is_board else AxclSmi(settings.axcl_smi, settings.npu_timeout)
    reading = asyncio.run(cards.read())
    if reading is None or reading.fault:
        why = reading.fault if reading else "another program holds axcl-smi."
        raise ClusterError(f"{why} --cards N says how many there are.")
    return len(reading.cards)


def _session_folder(settings: Settings) -> Path:
    """Below the state folder, which is this user's alone, unless its path is too long for sockets."""
    folder = settings.state_folder / "ray"
    if len(str(folder)) > LONGEST_FOLDER:
        folder = Path(f"/tmp/qwen-ray-{os.getuid()}")  # noqa: S108  # made for this user alone, or refused
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user. Use a shorter --state-dir.")
    return folder


def _become(arguments: list[str], environment: dict[str, str]) -> int:
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and then by what it becomes
        signal.signal(ignored, signal.SIG_DFL)
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is what we want
