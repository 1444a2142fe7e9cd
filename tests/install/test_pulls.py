"""/api/pull of a service without models, a process of its own, against a server that plays the hub; /api/delete."""

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.case_service import Script, scripted_service
from tests.hub_server import HubServer, hub_server, put
from tests.preloaded import start

REPO, REVISION = "people/mini", "a" * 40
CONTENT = bytes(range(256)) * 8192  # 2 MiB
MANIFEST = f"""\
name: mini
runtime: llamacpp
source: {{repo: {REPO}, revision: {REVISION}}}
files: [{{path: mini.gguf}}]
"""


@contextmanager
def service(folder: Path, endpoint: str) -> Iterator[httpx.Client]:
    (folder / "models/manifests").mkdir(parents=True)
    (folder / "models/manifests/mini.yaml").write_text(MANIFEST)
    flags = ["--models-dir", folder / "models", "--state-dir", folder / "state", "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf-home"), "NO_PROXY": "*"}
    shown, output = os.pipe()
    with open(os.devnull, "rb") as nothing, open(shown) as log:
        process = start("serve", *map(str, flags), files=[nothing.fileno(), output, output], env=environment)
        os.close(output)
        try:
            address = next(found[1] for line in log if (found := re.search(r"listening on (http\S+)", line)))
            drain = threading.Thread(target=log.read)
            drain.start()
            with httpx.Client(base_url=address, timeout=100) as client:
                yield client
        finally:
            process.terminate()
            drain.join()
            process.wait()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    put(tmp_path / "hub", REPO, REVISION, {"mini.gguf": CONTENT})
    with hub_server(tmp_path / "hub") as server:
        yield server


def test_a_pull_streams_its_progress_and_installs_the_model(hub: HubServer, tmp_path: Path) -> None:
    with service(tmp_path, hub.url) as client:
        answer = client.post("/api/pull", json={"model": "mini"})
        names = [model["name"] for model in client.get("/api/tags").json()["models"]]
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}
    assert names == ["mini:latest"]
    assert (tmp_path / "models/mini/mini.gguf").read_bytes() == CONTENT


def test_clients_share_one_pull_and_a_later_one_finds_it_done(hub: HubServer, tmp_path: Path) -> None:
    def pull(client: httpx.Client) -> object:
        return client.post("/api/pull", json={"model": "mini", "stream": False}).json()

    with service(tmp_path, hub.url) as client:
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(pull, [client] * 3)) == [{"status": "success"}] * 3
        assert pull(client) == {"status": "success"}
    assert len(hub.downloads_of("mini.gguf")) == 1


def test_a_pull_that_fails_ends_with_an_error_line(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "hub" / REPO / REVISION / "mini.gguf").unlink()
    with service(tmp_path, hub.url) as client:
        answer = client.post("/api/pull", json={"model": "mini"})
        whole = client.post("/api/pull", json={"model": "mini", "stream": False})
    assert "mini.gguf" in json.loads(answer.text.splitlines()[-1])["error"]
    assert whole.status_code == 502
    assert "mini.gguf" in whole.json()["error"]


async def test_what_is_not_in_the_catalog_cannot_be_pulled(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script(), {}) as app, _client(app) as client:
        answer = await client.post("/api/pull", json={"model": "../../etc/passwd"})
    assert answer.status_code == 404
    assert "not found" in answer.json()["error"]


async def test_a_model_is_deleted_and_the_loaded_one_is_not(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script(), {}) as app, _client(app) as client:
        await client.post("/api/generate", json={"model": "tiny"})
        loaded = await client.request("DELETE", "/api/delete", json={"model": "tiny"})
        other = await client.request("DELETE", "/api/delete", json={"model": "other"})
        missing = await client.request("DELETE", "/api/delete", json={"model": "nope"})
        names = [model["name"] for model in (await client.get("/api/tags")).json()["models"]]
    assert loaded.status_code == 400
    assert "is loaded" in loaded.json()["error"]
    assert other.status_code == 200
    assert missing.status_code == 404
    assert names == ["tiny:latest"]


def _client(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")  # type: ignore[arg-type]  # FastAPI is an ASGI app
