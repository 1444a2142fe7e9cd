"""What a process of the cluster gets from its node: settings, a card, folders that no other process uses."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen_service.cluster.settings import ClusterSettings
from qwen_service.config import load_settings
from qwen_service.errors import StartFailed
from qwen_service.process.instance_lock import AlreadyRunning, InstanceLock
from qwen_service.settings import Settings

CLAIM_PATIENCE = 60.0  # seconds: the card's former process may still be stopping


@dataclass(frozen=True, slots=True)
class Place:
    """A card, or the CPU, that only this process uses while it holds the lock."""

    name: str
    settings: Settings
    lock: InstanceLock


def node_settings(cluster: ClusterSettings, **own: Any) -> Settings:
    """The settings from config.yaml and environment of this node; the cluster's settings win. Raises ConfigError."""
    return load_settings({**cluster.service, "model": cluster.model, **own})


async def claim_place(cluster: ClusterSettings, *, patience: float = CLAIM_PATIENCE) -> Place:
    """Take the first card of `devices` that no other replica of this node uses. Raises StartFailed."""
    shared = node_settings(cluster)
    shared.state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        async with asyncio.timeout(patience):
            while True:
                for name, own in _places(cluster, shared):
                    lock = InstanceLock(shared.state_folder / f"{name.replace(' ', '-')}.lock")
                    try:
                        lock.take()
                    except AlreadyRunning:
                        continue
                    return Place(name, node_settings(cluster, **own), lock)
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise StartFailed(
            f"all cards of `devices` ({_list(shared)}) are in use by other replicas of this node"
        ) from None


def _places(cluster: ClusterSettings, shared: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """All places of this node, with separate folders and ports."""
    if cluster.replicas_on == "cpu":
        yield "CPU", _folders(shared, "cpu")
        return
    for index, device in enumerate(shared.devices):
        yield (
            f"card {device}",
            {
                "devices": (device,),
                "runtime_port": shared.runtime_port + index,
                "tokenizer_port": shared.tokenizer_port + index if shared.tokenizer_port else 0,
                **_folders(shared, f"card-{device}"),
            },
        )


def _folders(shared: Settings, name: str) -> dict[str, Any]:
    log_dir = shared.log_dir / name if shared.log_dir is not None else None
    return {"state_dir": shared.state_dir / name, "log_dir": log_dir}


def _list(shared: Settings) -> str:
    return ", ".join(map(str, shared.devices))
