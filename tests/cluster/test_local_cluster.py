"""The service on three nodes of Ray in one machine: a head, and two that have a simulated card each."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.local_cluster import MODEL, LocalCluster, local_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

CARDS = 2
PLACES = 8  # in the line, as local_cluster sets it
TOKEN = 0.05  # seconds
REPLY = [1000 + number for number in range(200)]  # ten seconds of it
PATIENCE = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_folder: Path) -> Iterator[LocalCluster]:
    environment = {"SIM_STEP": "0.05", "SIM_TOKEN": str(TOKEN), "SIM_REPLY": json.dumps(REPLY)}
    folder = tmp_path_factory.mktemp("ray")
    with local_cluster(folder, small_tokenizer_folder, cards=CARDS, environment=environment) as cluster:
        asyncio.run(cluster.until_ready(CARDS))
        yield cluster


@pytest.fixture
async def http(cluster: LocalCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=PATIENCE) as client:
        yield client


def asked(*turns: str, **body: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"messages": messages, "model": MODEL, "max_tokens": 6, **body}


async def replicas(http: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """By node."""
    details = (await http.get("/health")).json()["details"]
    return {replica["node"]: replica for replica in details["replicas"]}


async def until(http: httpx.AsyncClient, condition: Callable[[dict[str, dict[str, Any]]], bool]) -> None:
    found: dict[str, dict[str, Any]] = {}
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition(found := await replicas(http)):  # noqa: ASYNC110  # only /health can tell
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"/health still says {found}") from None


def all_ready(found: dict[str, dict[str, Any]]) -> bool:
    return sorted(replica["state"] for replica in found.values()) == ["ready"] * CARDS


@asynccontextmanager
async def running_reply(http: httpx.AsyncClient, text: str) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a stream whose first token has come."""
    async with http.stream("POST", "/v1/chat/completions", json=asked(text, stream=True, max_tokens=190)) as response:
        lines, seen = response.aiter_lines(), []
        async for line in lines:
            seen.append(line)
            if '"content":"' in line and '"content":""' not in line:
                break
        else:
            raise AssertionError(f"{response.status_code}, and no token: {seen}")
        yield lines


def all_idle(found: dict[str, dict[str, Any]]) -> bool:
    return all_ready(found) and not any(replica["running"] for replica in found.values())


async def node_that_works(http: httpx.AsyncClient) -> str:
    """The only one; before its work began, all must have been reported idle."""
    found: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while not found:
            found = [node for node, replica in (await replicas(http)).items() if replica["running"]]
    (only,) = found
    return only


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/chat/completions", asked("Hello"), lambda reply: reply["choices"][0]["message"]["content"]),
        ("/v1/messages", asked("Hello"), lambda reply: reply["content"][0]["text"]),
        (
            "/api/chat",
            {**asked("Hello"), "stream": False, "options": {"num_predict": 6}},
            lambda reply: reply["message"]["content"],
        ),
        (
            "/v1/responses",
            {"model": MODEL, "input": "Hello", "max_output_tokens": 16},
            lambda reply: reply["output"][0]["content"][0]["text"],
        ),
    ],
)
async def test_every_dialect_is_answered(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], text: Callable[[Any], str]
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert text(response.json())


async def test_an_error_of_the_request_keeps_its_status(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=asked("word " * 5000))
    assert response.status_code == 400
    assert "tokens" in response.json()["error"]["message"]


async def test_a_stream_comes_token_by_token(http: httpx.AsyncClient) -> None:
    times = []
    async with http.stream("POST", "/v1/chat/completions", json=asked("Hi", stream=True, max_tokens=60)) as response:
        async for line in response.aiter_lines():
            if '"content":"' in line:
                times.append(time.monotonic())
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    assert len(times) >= 20
    assert times[-1] - times[0] > 40 * TOKEN
    assert gaps[-1] < 30 * TOKEN


async def test_two_talks_keep_their_cards_and_every_id_is_found_again(http: httpx.AsyncClient) -> None:
    await until(http, all_ready)
    talks = [[f"Talk {number} is about something of its own."] for number in range(CARDS)]
    before = [0] * CARDS
    for turn in range(3):
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=asked(*talk)) for talk in talks))
        for number, answer in enumerate(answers):
            reply = answer.json()
            cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            if turn:
                assert cached >= before[number] - 1, f"turn {turn} of talk {number}"
            before[number] = reply["usage"]["total_tokens"]
            talks[number] += [reply["choices"][0]["message"]["content"], "Go on."]


async def test_clients_that_leave_free_their_cards_within_a_step(http: httpx.AsyncClient) -> None:
    async def leave(number: int) -> None:
        async with running_reply(http, f"Leaving {number}"):
            pass

    await asyncio.gather(*map(leave, range(CARDS)))
    started = time.monotonic()
    answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=asked(f"New {n}")) for n in range(CARDS)))
    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - started < 5.0  # their replies would have taken ten seconds


async def test_a_full_line_is_refused_by_us_with_the_time_to_come_back(http: httpx.AsyncClient) -> None:
    bodies = [asked(f"Many {number}", max_tokens=20) for number in range(CARDS + PLACES + 5)]
    answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for body in bodies))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers].count(200) == CARDS + PLACES
    assert len(refused) == 5
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_a_lost_card_ends_its_reply_with_an_error_and_comes_back(
    http: httpx.AsyncClient, cluster: LocalCluster
) -> None:
    await until(http, all_idle)
    async with running_reply(http, "This card will be lost") as lines:
        place = (await replicas(http))[await node_that_works(http)]["place"].replace(" ", "-")
        pid = int((cluster.host.folder / "state" / place / "ax_api.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        rest = [line async for line in lines if line]
    assert '"error"' in rest[-1] or '"error"' in rest[-2]
    assert "[DONE]" not in rest[-1]
    assert (await http.post("/v1/chat/completions", json=asked("The others go on"))).status_code == 200
    await until(http, lambda found: all_ready(found) and any(replica["restarts"] for replica in found.values()))


async def test_a_replica_that_is_killed_is_replaced(http: httpx.AsyncClient, cluster: LocalCluster) -> None:
    before = cluster.workers("CardReplica")["CardReplica"]
    os.kill(before[0], signal.SIGKILL)
    answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=asked(f"After {n}")) for n in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    async with asyncio.timeout(PATIENCE):
        while len(set(cluster.workers("CardReplica")["CardReplica"]) - {before[0]}) < CARDS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await until(http, all_ready)


async def test_a_new_deployment_loses_no_request(http: httpx.AsyncClient, cluster: LocalCluster) -> None:
    answers: list[httpx.Response] = []
    over = asyncio.Event()

    async def client(number: int) -> None:
        while not over.is_set():
            answers.append(await http.post("/v1/chat/completions", json=asked(f"Client {number}")))

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(client(number))
        await asyncio.to_thread(cluster.deploy)
        over.set()
    await until(http, all_ready)
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert len(answers) > 10


async def test_a_node_that_dies_is_named_and_used_again_when_it_returns(
    http: httpx.AsyncClient, cluster: LocalCluster
) -> None:
    await until(http, all_idle)
    try:
        async with asyncio.TaskGroup() as group, running_reply(http, "This node will die") as lines:
            name = await node_that_works(http)
            waiting = [group.create_task(http.post("/v1/chat/completions", json=asked(f"Wait {n}"))) for n in range(4)]
            await asyncio.to_thread(cluster.kill, name)
            rest = [line async for line in lines if line]
        assert f"of {name} was lost" in rest[-1] + rest[-2]
        assert {answer.result().status_code for answer in waiting} == {200}
        await until(http, lambda found: found[name]["state"] == "gone")
        assert (await http.get("/health")).json()["status"] == "degraded"
    finally:
        cluster.add_missing_nodes()
    await until(http, all_ready)


async def test_two_ingresses_before_an_engine_on_the_cpu(
    http: httpx.AsyncClient, cluster: LocalCluster, small_gguf: Path
) -> None:
    cluster.host.install_gguf(small_gguf)
    await asyncio.to_thread(cluster.deploy, model="cpu", replicas=1, replicas_on="cpu", ingress_replicas=2)
    await cluster.until_ready(1)
    bodies = [{**asked(f"Say {number}"), "model": "cpu"} for number in range(8)]
    answers = [await http.post("/v1/chat/completions", json=body) for body in bodies]
    assert {answer.status_code for answer in answers} == {200}
    assert all(1 <= answer.json()["usage"]["completion_tokens"] <= 6 for answer in answers)  # the model may end sooner
    assert len(cluster.workers("Ingress")["Ingress"]) == 2
