"""The largest bodies that the service takes, made to be expensive, against the service as a user starts it."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import httpx2
import pytest

from bench.hostile_bodies import GROWTH, SIZE, SLOWEST, Body, bodies, cost_of, faults
from tests.service_process import ServiceProcess, service_process


@pytest.fixture(scope="module")
def service(small_gguf: Path) -> Iterator[ServiceProcess]:
    with service_process("--model-path", str(small_gguf), "--context-size", "640") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("every_route", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.timeout(300)
async def test_no_body_of_the_largest_size_stops_the_service_or_fills_its_memory(
    service: ServiceProcess, *, every_route: bool
) -> None:
    """The time is 10 times what an idle machine keeps (`python -m bench.hostile_bodies`)."""
    found = []
    async with httpx2.AsyncClient(base_url=service.url, timeout=90) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        for body in bodies(model) if every_route else each_kind_once(bodies(model)):
            cost = await cost_of(body, client, service.process.pid)
            assert SIZE * 0.5 < cost.size <= SIZE, body.name
            found += faults(cost, slowest=SLOWEST * 10, growth=GROWTH)
    assert found == []


def each_kind_once(bodies: Iterable[Body]) -> Iterator[Body]:
    """By turns to the routes that take them."""
    for number, (_, same) in enumerate(groupby(bodies, key=lambda body: body.name)):
        routes = list(same)
        yield routes[number % len(routes)]
