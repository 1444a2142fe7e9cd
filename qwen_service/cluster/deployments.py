"""Configures and starts the two deployments of a cluster on Ray Serve."""

from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from qwen_service.cluster.card_replica import CardReplica
from qwen_service.cluster.ingress import Ingress
from qwen_service.cluster.node import node_settings
from qwen_service.cluster.ray_command import CARD
from qwen_service.cluster.settings import APPLICATION, ClusterSettings

ROUTER = "qwen_service.cluster.router.PrefixRouter"
LOOK_EVERY = 10.0  # seconds between Ray's health checks of a replica
TOKENIZING = 4
# A single ingress runs on the head, like the proxy: the loss of a card's node does not touch it. The name is Ray's.
ON_HEAD = {"node:__internal_head__": 0.001}
IN_PROGRESS = 10_000  # Ray's bound for one ingress; the service's own bounds are far lower


def deploy(cluster: ClusterSettings, *, router: str = ROUTER) -> DeploymentHandle:
    """Start the cluster, or replace its replicas one by one. Returns when all work. Call ray.init before."""
    options = HTTPOptions(host=cluster.host, port=cluster.port)
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options)
    return serve.run(build_application(cluster, router=router), name=APPLICATION)


def build_application(cluster: ClusterSettings, *, router: str = ROUTER) -> serve.Application:
    replicas = serve.deployment(CardReplica).options(
        num_replicas=cluster.replicas or _one_each(cluster),
        max_ongoing_requests=_slots(cluster),
        ray_actor_options=_needs(cluster),
        max_replicas_per_node=1 if cluster.replicas_on == "cpu" else None,
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_router_kwargs={"report_period": cluster.report_period},
            request_routing_stats_period_s=cluster.report_period,
            request_routing_stats_timeout_s=max(30.0, cluster.report_period),
        ),
        **_patience(cluster),
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        num_replicas=cluster.ingress_replicas,
        max_ongoing_requests=IN_PROGRESS,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD if cluster.ingress_replicas == 1 else {}},
        **_patience(cluster),
    )
    return ingress.bind(cluster, replicas.bind(cluster))


def _patience(cluster: ClusterSettings) -> dict[str, Any]:
    return {
        "health_check_period_s": LOOK_EVERY,
        "health_check_timeout_s": cluster.node_timeout,
        "graceful_shutdown_timeout_s": cluster.longest_reply,
        "graceful_shutdown_wait_loop_s": 0.5,
    }


def _needs(cluster: ClusterSettings) -> dict[str, Any]:
    return {"num_cpus": 0, "resources": {CARD: 1}} if cluster.replicas_on == "card" else {"num_cpus": 0}


def _slots(cluster: ClusterSettings) -> int:
    """The requests that Ray sends to a replica at once. On the CPU a replica must also tokenize while all slots work."""
    return 1 if cluster.replicas_on == "card" else node_settings(cluster).slots + TOKENIZING


def _one_each(cluster: ClusterSettings) -> int:
    """The number of cards, or of nodes, that the cluster has now; at least 1, for a node that joins later."""
    if cluster.replicas_on == "card":
        return max(1, int(ray.cluster_resources().get(CARD, 0)))
    return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))
