"""Embeddings by both dialects. A chat model's are of no use, but they are vectors: the real SmolLM2 makes them here."""

import asyncio
import base64
import math
import shutil
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from qwen_service.engines import embeddings
from qwen_service.engines.embeddings import Embeddings
from qwen_service.errors import QueueFull, StartFailed
from qwen_service.models.installed import InstalledModel
from qwen_service.runtimes.local_http import HttpError
from qwen_service.settings import Settings
from tests.case_service import Script, scripted_service
from tests.small_gguf import WIDTH
from tests.waiting import until

NAME = "smollm2-135m-instruct.q4_1"


@pytest.fixture
async def http(tmp_path: Path, small_gguf: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with asked(tmp_path, settings_for(small_gguf)) as client:
        yield client


def settings_for(gguf: Path) -> dict[str, Any]:
    return {"embedding_model": gguf, "embedding_pooling": "mean", "context_size": 256, "threads": 1}


@asynccontextmanager
async def asked(folder: Path, settings: Mapping[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with scripted_service(folder, Script(), settings) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=100) as client:
            yield client


def install(models: Path, gguf: Path, manifest: str = "") -> None:
    """As `vectors`, a model made for embeddings."""
    (models / "manifests").mkdir(parents=True)
    (models / "manifests/vectors.yaml").write_text(
        'name: vectors\naliases: ["v:1"]\nruntime: llamacpp\nfiles: [{path: a.gguf}]\n'
        f"capabilities: [embedding]\npooling: mean\n{manifest}"
    )
    (models / "vectors").mkdir()
    shutil.copy(gguf, models / "vectors/a.gguf")


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def vectors(http: httpx.AsyncClient, **body: Any) -> list[list[float]]:
    answer = await http.post("/api/embed", json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    found: list[list[float]] = answer.json()["embeddings"]
    return found


async def test_like_texts_have_like_vectors_of_length_one(tmp_path: Path, smollm2: Path) -> None:
    texts = ["The dog barks.", "The cat meows.", "Article 12, paragraph 3 is void."]
    async with asked(tmp_path, settings_for(smollm2)) as http:
        dog, cat, law = await vectors(http, input=texts)
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in (dog, cat, law))
    assert likeness(dog, cat) > likeness(dog, law)


async def test_both_dialects_give_the_same_vector(http: httpx.AsyncClient) -> None:
    (ollama,) = await vectors(http, input="the")
    older = await http.post("/api/embeddings", json={"model": NAME, "prompt": "the"})
    plain = await http.post("/v1/embeddings", json={"model": NAME, "input": ["the"]})
    packed = await http.post("/v1/embeddings", json={"model": NAME, "input": "the", "encoding_format": "base64"})
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    assert likeness(ollama, older.json()["embedding"]) > 0.9999
    assert likeness(ollama, plain.json()["data"][0]["embedding"]) > 0.9999
    assert likeness(ollama, list(struct.unpack(f"<{len(raw) // 4}f", raw))) > 0.9999
    assert plain.json()["usage"]["prompt_tokens"] == 1


async def test_no_text_has_no_vector_in_ollamas_api(http: httpx.AsyncClient) -> None:
    assert await vectors(http, input="") == []
    older = await http.post("/api/embeddings", json={"model": NAME, "prompt": ""})
    assert (older.status_code, older.json()) == (200, {"embedding": []})


async def test_fewer_dimensions_are_still_of_length_one(http: httpx.AsyncClient) -> None:
    (vector,) = await vectors(http, input="Hello", dimensions=64)
    assert len(vector) == 64
    assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-6)


async def test_a_long_text_is_cut_or_refused(http: httpx.AsyncClient) -> None:
    text = "word " * 400
    assert len(await vectors(http, input=text)) == 1
    refused = await http.post("/api/embed", json={"model": NAME, "input": text, "truncate": False})
    assert refused.status_code == 400
    assert "256" in refused.json()["error"]
    body = {"model": NAME, "input": text}
    answer = await http.post("/v1/embeddings", json=body)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_another_model_is_unknown(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "tiny", "input": "Hello"})
    assert answer.status_code == 404


async def test_the_model_can_be_named_instead_of_its_file(tmp_path: Path, small_gguf: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(small_gguf, tmp_path / "models" / "vectors.gguf")
    async with asked(tmp_path, settings_for(Path("vectors"))) as client:
        answer = await client.post("/v1/embeddings", json={"model": "vectors", "input": "Hello"})
    assert (answer.status_code, answer.json()["model"]) == (200, "vectors")
    assert len(answer.json()["data"][0]["embedding"]) == WIDTH


async def test_a_name_that_nobody_has_is_told_when_it_is_used(tmp_path: Path) -> None:
    async with asked(tmp_path, {"embedding_model": Path("nothing")}) as client:
        answer = await client.post("/v1/embeddings", json={"input": "Hello"})
    assert answer.status_code == 503
    assert "embedding_model: There is no model 'nothing'" in answer.json()["error"]["message"]


async def test_a_file_that_is_not_there_is_told_when_it_is_used(tmp_path: Path) -> None:
    async with asked(tmp_path, {"embedding_model": Path("nothing.gguf")}) as client:
        answer = await client.post("/v1/embeddings", json={"input": "Hello"})
    assert answer.status_code == 503
    assert "nothing.gguf cannot be read" in answer.json()["error"]["message"]


async def test_without_a_model_for_embeddings_the_answer_names_one_to_pull(tmp_path: Path) -> None:
    async with asked(tmp_path, {}) as client:
        answer = await client.post("/v1/embeddings", json={"input": "Hello"})
    assert answer.status_code == 501
    assert "qwen-service pull qwen3-embedding-0.6b" in answer.json()["error"]["message"]


async def test_an_installed_model_for_embeddings_needs_no_setting_and_does_not_chat(
    tmp_path: Path, small_gguf: Path
) -> None:
    install(tmp_path / "models", small_gguf)
    async with asked(tmp_path, {"context_size": 256, "threads": 1}) as client:
        made = await client.post("/v1/embeddings", json={"model": "v:1", "input": "Hello"})
        shown = await client.post("/api/show", json={"model": "vectors"})
        chat = {"model": "vectors", "messages": [{"role": "user", "content": "Hello"}]}
        refused = await client.post("/v1/chat/completions", json=chat)
    assert (made.status_code, made.json()["model"]) == (200, "vectors")
    assert shown.json()["capabilities"] == ["embedding"]
    assert (refused.status_code, "vectors does not support chat" in refused.text) == (400, True)


async def test_a_text_is_never_longer_than_the_model_takes(tmp_path: Path, small_gguf: Path) -> None:
    """SmolLM2 has learnt 8192 tokens, the manifest says 300, the setting 16384."""
    install(tmp_path / "models", small_gguf, "context: 300\n")
    async with asked(tmp_path, {"context_size": 16_384, "threads": 1}) as client:
        refused = await client.post("/v1/embeddings", json={"input": "word " * 400})
    assert "takes at most 300" in refused.json()["error"]["message"]


async def test_a_cut_text_keeps_the_token_that_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3-Embedding's vector is that of <|endoftext|>, BERT's texts end in [SEP]."""
    made = Embeddings(Settings())

    class Http:
        async def get(self, path: str, timeout: float) -> dict[str, Any]:
            return {"default_generation_settings": {"n_ctx": 6}}

        async def post(self, path: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
            letters = [ord(letter) for letter in body["content"]]
            return {"tokens": [1, *letters, 2, 3] if body["add_special"] else letters}

    process = SimpleNamespace(http=Http())

    async def running() -> SimpleNamespace:
        return process

    monkeypatch.setattr(made, "_running", running)
    await made._measure(process, 100)  # type: ignore[arg-type]  # all that it uses of a process
    assert await made._ids("abc", True) == [1, *b"abc", 2, 3]
    assert await made._ids("abcdefgh", True) == [1, *b"abc", 2, 3]
    assert await made._ids([*b"abcdefgh"], True) == [*b"abcdef"]


@pytest.mark.parametrize("error", [ConnectionResetError("closed"), HttpError(500, b"no memory")])
async def test_an_engine_that_fails_as_soon_as_it_is_up_is_told_and_stopped(
    small_gguf: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    made = Embeddings(Settings(embedding_model=small_gguf))
    stopped: list[str] = []

    class Process:
        http = SimpleNamespace(get=lambda path, timeout: fail())

        async def stop(self) -> None:
            stopped.append("stopped")

    async def fail() -> None:
        raise error

    async def started(model: InstalledModel, context: int) -> Process:
        return Process()

    monkeypatch.setattr(made, "_started", started)
    for times in (1, 2):
        with pytest.raises(StartFailed, match=r"came up, but failed at once.*(closed|no memory)"):
            await made.embed(None, ["Hello"])
        assert stopped == ["stopped"] * times


async def test_an_idle_model_is_unloaded_and_comes_back(tmp_path: Path, small_gguf: Path) -> None:
    settings = Settings(
        embedding_model=small_gguf,
        embedding_pooling="mean",
        context_size=256,
        threads=1,
        state_dir=tmp_path,
        unload_when_idle=0.3,
    )
    made = Embeddings(settings)
    try:
        first = await made.embed(None, ["Hello"])
        await until(lambda: made._process is None)
        again = await made.embed(None, ["Hello"])
        assert likeness(list(first.vectors[0]), list(again.vectors[0])) > 0.9999
    finally:
        await made.stop()


async def test_what_is_bounded_is_the_text_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_WAITING", 10)
    made = Embeddings(Settings(embedding_model=tmp_path / "slow.gguf"))
    begun, gate = asyncio.Event(), asyncio.Event()

    async def tokenize(text: str, truncate: bool) -> list[int]:
        begun.set()
        await gate.wait()
        return [1]

    async def vector(ids: list[int], dimensions: int | None) -> tuple[float, ...]:
        return (1.0,)

    monkeypatch.setattr(made, "_ids", tokenize)
    monkeypatch.setattr(made, "_vector", vector)
    first = asyncio.create_task(made.embed(None, ["more than ten"]))  # one alone is never too many
    await begun.wait()
    with pytest.raises(QueueFull, match="13 characters"):
        await made.embed(None, ["a"])
    gate.set()
    assert (await first).tokens == 1
    assert (await made.embed(None, ["a"])).vectors == ((1.0,),)
