"""docs/cluster.md against the code it describes."""

import re

from qwen_service.cluster.ray_command import PORT, PORTS
from qwen_service.cluster.settings import ClusterSettings
from tests import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()


def test_every_key_of_the_cluster_is_in_the_table_and_no_other() -> None:
    table = PAGE.partition("| key | default |")[2].partition("\n## ")[0]
    firsts = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(firsts))) == sorted(ClusterSettings.model_fields)


def test_the_ports_for_the_firewall_are_those_that_are_used() -> None:
    assert f"{PORT} to {PORT + PORTS - 1}" in PAGE
    assert f"tcp dport {PORT}-{PORT + PORTS - 1} " in PAGE
