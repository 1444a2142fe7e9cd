"""The largest bodies that the service takes, made to be expensive, against the service as a user starts it."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from bench.hostile_bodies import GROWTH, SIZE, SLOWEST, bodies, cost_of, faults
from tests.service_process import ServiceProcess, service_process


@pytest.fixture(scope="module")
def service(smollm2: Path) -> Iterator[ServiceProcess]:
    with service_process("--model-path", str(smollm2), "--context-size", "640") as running:
        yield running


async def test_no_body_of_the_largest_size_stops_the_service_or_fills_its_memory(service: ServiceProcess) -> None:
    """The time is 10 times what an idle machine keeps (`python -m bench.hostile_bodies`)."""
    found = []
    async with httpx2.AsyncClient(base_url=service.url, timeout=90) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        for body in bodies(model):
            assert SIZE * 0.5 < len(body.content) <= SIZE, body.name
            cost = await cost_of(body, client, service.process.pid)
            found += faults(cost, slowest=SLOWEST * 10, growth=GROWTH)
    assert found == []
