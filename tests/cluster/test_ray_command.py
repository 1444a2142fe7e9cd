from itertools import pairwise
from pathlib import Path

from qwen_service.cluster.ray_command import MARK, PORTS, Node, as_shell, node_environment, start_arguments


def values(arguments: list[str]) -> dict[str, str]:
    return {name: value for name, value in pairwise(arguments) if name.startswith("--")}


def ports(node: Node) -> list[int]:
    """Those of `ray start` and of its environment, without the range of the workers."""
    given = values(start_arguments(node)) | node_environment(node, Path("state"), None)
    ranges = ("--min-worker-port", "--max-worker-port")
    return [int(value) for name, value in given.items() if name.lower().endswith("port") and name not in ranges]


def test_the_head_offers_its_cards_and_leaves_out_what_nobody_uses() -> None:
    arguments = start_arguments(Node("10.0.0.1", cards=(0, 1), folder=Path("/var/lib/ray")))
    given = values(arguments)
    assert arguments[0] == "start"
    assert "--head" in arguments
    assert "--address" not in arguments
    assert given["--node-ip-address"] == "10.0.0.1"
    assert given["--port"] == "6379"
    assert given["--resources"] == '{"axera_card": 2}'
    assert given["--object-store-memory"] == "80000000"
    assert given["--include-dashboard"] == "false"
    assert given["--include-log-monitor"] == "false"
    assert given["--temp-dir"] == "/var/lib/ray"
    assert {"--no-monitor", "--disable-usage-stats"} <= set(arguments)
    assert "--block" not in arguments


def test_a_worker_joins_the_head_and_has_no_part_of_it() -> None:
    arguments = start_arguments(Node("10.0.0.2", head="10.0.0.1:6379", block=True))
    given = values(arguments)
    assert given["--address"] == "10.0.0.1:6379"
    assert given["--resources"] == "{}"
    assert arguments[-1] == "--block"
    assert {"--head", "--port", "--include-dashboard", "--ray-client-server-port"} & set(arguments) == set()


def test_all_ports_of_a_node_are_different_and_lie_in_its_range() -> None:
    node = Node("10.0.0.1", port=7000)
    given = values(start_arguments(node))
    used = ports(node)
    first, last = int(given["--min-worker-port"]), int(given["--max-worker-port"])
    assert len(used) == len(set(used)) == 9
    assert all(7000 <= port < first for port in used)
    assert last == 7000 + PORTS - 1


def test_the_environment_asks_for_the_token_and_does_not_hold_it() -> None:
    environment = node_environment(Node("10.0.0.1"), Path("/home/pi/state"), Path("/etc/qwen/config.yaml"))
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "QWEN_DEVICES" not in environment
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert float(environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]) == 60
    assert environment[MARK] == "/home/pi/state"
    assert environment["QWEN_CONFIG"] == "/etc/qwen/config.yaml"
    assert "RAY_AUTH_TOKEN" not in environment


def test_what_is_printed_can_be_pasted_into_a_shell() -> None:
    line = as_shell(start_arguments(Node("10.0.0.1", cards=(0,))), {"NAME": "two words"})
    assert line.startswith("env 'NAME=two words' ray start --head --port 6379")
    assert """--resources '{"axera_card": 1}'""" in line


def test_replicas_learn_from_the_environment_which_cards_are_theirs() -> None:
    environment = node_environment(Node("10.0.0.1", cards=(0, 2)), Path("/home/pi/state"), None)
    assert environment["QWEN_DEVICES"] == "0,2"
    assert "QWEN_CONFIG" not in environment
