"""The questions of `qwen-service cluster` to a running cluster, asked as a Ray driver on one of its nodes."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qwen_service.cluster.node_facts import EngineView, NodeFacts, NodeView, look_at_this_node, pull_on_this_node
from qwen_service.cluster.ray_command import CARD, ClusterError
from qwen_service.cluster.wire import Report
from qwen_service.errors import ServiceError

SERVE, CONTROLLER = "serve", "SERVE_CONTROLLER_ACTOR"  # Ray Serve's namespace, and the actor that knows all replicas
HEAD = "node:__internal_head__"  # the resource that marks the head
PATIENCE = 30.0  # seconds for a node's answer: it may have to start a process first
ENGINES = "CardReplica"  # the deployment


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster of this machine. Raises ClusterError."""
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise ClusterError(f"No cluster answers at {address}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[NodeView]:
    """All nodes that have joined since the start of the head, including those that are gone."""
    newest = {(node["NodeManagerAddress"], node["NodeManagerPort"]): node for node in sorted(_nodes(), key=_is_alive)}
    known = list(newest.values())
    asked = {node["NodeID"]: _on(node["NodeID"], look_at_this_node).remote() for node in known if node["Alive"]}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
    return [_view(node, asked.get(node["NodeID"])) for node in known]


def _view(node: dict[str, Any], asked: Any) -> NodeView:
    resources = node["Resources"]
    view = NodeView(
        node["NodeID"],
        node["NodeManagerAddress"],
        node["Alive"],
        int(resources.get(CARD, 0)),
        is_head=HEAD in resources,
    )
    if asked is None:
        return view
    try:
        facts: NodeFacts = _get(asked, 0)
    except GetTimeoutError:
        return replace(view, fault=f"has not answered for {PATIENCE:g} s")
    except RayError as error:
        return replace(view, fault=_reason(error))
    return replace(view, facts=facts)


def engines() -> list[EngineView]:
    """The engines of the deployed application; empty when none is deployed."""
    try:
        controller = ray.get_actor(CONTROLLER, namespace=SERVE)
    except ValueError:
        return []
    details: dict[str, Any] = _get(controller.get_serve_instance_details.remote(), PATIENCE)
    found = [
        replica
        for application in details["applications"].values()
        for replica in application["deployments"].get(ENGINES, {}).get("replicas", ())
    ]
    asked = [_ask(replica) for replica in found]
    return [
        EngineView(replica.get("node_id") or "", str(replica["state"]), _answer(reference))
        for replica, reference in zip(found, asked, strict=True)
    ]


def _ask(replica: Mapping[str, Any]) -> Any:
    """Ask a replica for its report; None when it cannot answer yet."""
    if replica["state"] != "RUNNING":
        return None
    try:
        return ray.get_actor(replica["actor_name"], namespace=SERVE).record_routing_stats.remote()
    except ValueError:  # the replica has just ended
        return None


def _answer(reference: Any) -> Report | None:
    if reference is None:
        return None
    try:
        report = (_get(reference, PATIENCE) or {}).get("report")
    except (GetTimeoutError, RayError):
        return None
    return report if isinstance(report, Report) else None


def pull_everywhere(name: str) -> Iterator[tuple[str, str, bool]]:
    """Pull on all nodes at once. Yields (address of the node, line of progress, whether it failed)."""
    streams: dict[Any, str] = {
        _on(node["NodeID"], pull_on_this_node, num_returns="streaming").remote(name): node["NodeManagerAddress"]
        for node in _nodes()
        if node["Alive"]
    }
    while streams:
        ready, _ = ray.wait(list(streams), num_returns=1)
        for stream in ready:
            try:
                yield streams[stream], _get(next(stream), PATIENCE), False
            except StopIteration:
                del streams[stream]
            except RayError as error:
                yield streams.pop(stream), _reason(error), True


def _get(reference: Any, seconds: float) -> Any:
    """Wait for a result. Raises GetTimeoutError or RayError."""
    return ray.get(reference, timeout=seconds)


def _reason(error: RayError) -> str:
    """The error that a task raised on its node, without Ray's wrapping."""
    cause = getattr(error, "cause", None)
    return cause.message if isinstance(cause, ServiceError) else str(cause or error).strip().splitlines()[-1]


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()
    return found


def _is_alive(node: Mapping[str, Any]) -> bool:
    return bool(node["Alive"])


def _on(node: str, function: Callable[..., Any], **options: Any) -> Any:
    """Make a function a task that runs on this node only."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=place, **options)
