"""Which card a replica of a node works on."""

from pathlib import Path
from typing import Any

import pytest

from qwen_service.cluster.node import claim_place
from qwen_service.cluster.settings import ClusterSettings
from qwen_service.errors import StartFailed


def cluster(folder: Path, **settings: Any) -> ClusterSettings:
    service = {"state_dir": str(folder), "devices": (0, 2), "runtime_port": 8000, "tokenizer_port": 12345}
    return ClusterSettings(model="m", service=service, **settings)


async def test_each_replica_of_a_node_has_a_card_folders_and_ports_of_its_own(tmp_path: Path) -> None:
    first, second = [await claim_place(cluster(tmp_path)) for _ in range(2)]
    assert (first.name, second.name) == ("card 0", "card 2")
    assert (first.settings.devices, second.settings.devices) == ((0,), (2,))
    assert (first.settings.runtime_port, second.settings.runtime_port) == (8000, 8001)
    assert (first.settings.tokenizer_port, second.settings.tokenizer_port) == (12345, 12346)
    assert first.settings.state_folder != second.settings.state_folder
    with pytest.raises(StartFailed, match=r"all cards of `devices` \(0, 2\) are in use by other replicas"):
        await claim_place(cluster(tmp_path), patience=0.3)
    first.lock.release()
    again = await claim_place(cluster(tmp_path))
    assert again.name == "card 0"
    for place in (second, again):
        place.lock.release()


async def test_on_the_cpu_a_node_has_one_place(tmp_path: Path) -> None:
    place = await claim_place(cluster(tmp_path, replicas_on="cpu"))
    assert (place.name, place.settings.state_folder) == ("CPU", tmp_path / "cpu")
    with pytest.raises(StartFailed, match="of this node"):
        await claim_place(cluster(tmp_path, replicas_on="cpu"), patience=0.3)
    place.lock.release()
