"""Finds the address, cards and folder of a node for `qwen-service cluster start`, from its flags and the machine."""

import argparse
import ipaddress
import os
import socket
from pathlib import Path

from qwen_service.cluster.node_facts import read_cards
from qwen_service.cluster.ray_command import LONGEST_FOLDER, PORT, PORTS, ClusterError, Node
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings

# No machine has this address (RFC 5737): the kernel says from which of our addresses it would be reached.
ELSEWHERE = "198.51.100.1"


def node_from(options: argparse.Namespace, settings: Settings) -> Node:
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
        cards=cards_of(options, settings),
        folder=session_folder(settings),
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
    return own_address(towards)  # the other nodes need a real address


def own_address(towards: str) -> str:
    """The address of this machine on the way to another one. Nothing is sent."""
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
        raise ClusterError(
            f"--join {host}: this name has no address: {error.strerror}. Name the address of the head."
        ) from None


def cards_of(options: argparse.Namespace, settings: Settings, machine: Machine | None = None) -> tuple[int, ...]:
    """The numbers of the cards of this node: those of `devices` if that is set, else all cards found."""
    if options.cards is not None:
        return tuple(range(options.cards))
    reading = read_cards(settings, machine)
    if reading.fault:
        raise ClusterError(f"{reading.fault} Give the number of cards with --cards N.")
    found = tuple(card.index for card in reading.cards)
    return tuple(card for card in found if "devices" not in settings.model_fields_set or card in settings.devices)


def session_folder(settings: Settings) -> Path:
    """The folder for Ray's session: below the state folder, which only this user can read, unless that path is too long."""
    folder = settings.state_folder / "ray"
    if len(str(folder)) > LONGEST_FOLDER:
        folder = Path(f"/tmp/qwen-ray-{os.getuid()}")  # noqa: S108  # made for this user alone, or refused
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user. Use a shorter --state-dir.")
    return folder
