"""Embeddings by both dialects. A chat model's are of no use, but they are vectors: the real SmolLM2 makes them here."""

import base64
import math
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.case_service import Script, scripted_service

NAME = "smollm2-135m-instruct.q4_1"


@pytest.fixture
async def http(tmp_path: Path, smollm2: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"embedding_model": smollm2, "embedding_pooling": "mean", "context_size": 256, "threads": 1}
    async with scripted_service(tmp_path, Script(), settings) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=100) as client:
            yield client


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def vectors(http: httpx.AsyncClient, **body: Any) -> list[list[float]]:
    answer = await http.post("/api/embed", json={"model": NAME, **body})
    assert answer.status_code == 200, answer.text
    found: list[list[float]] = answer.json()["embeddings"]
    return found


async def test_like_texts_have_like_vectors_of_length_one(http: httpx.AsyncClient) -> None:
    dog, cat, law = await vectors(http, input=["The dog barks.", "The cat meows.", "Article 12, paragraph 3 is void."])
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in (dog, cat, law))
    assert likeness(dog, cat) > likeness(dog, law)


async def test_both_dialects_give_the_same_vector(http: httpx.AsyncClient) -> None:
    (ollama,) = await vectors(http, input="Hello")
    older = await http.post("/api/embeddings", json={"model": NAME, "prompt": "Hello"})
    plain = await http.post("/v1/embeddings", json={"model": NAME, "input": ["Hello"]})
    packed = await http.post("/v1/embeddings", json={"model": NAME, "input": "Hello", "encoding_format": "base64"})
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


async def test_the_model_can_be_named_instead_of_its_file(tmp_path: Path, smollm2: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(smollm2, tmp_path / "models" / "vectors.gguf")
    settings = {"embedding_model": Path("vectors"), "embedding_pooling": "mean", "context_size": 256, "threads": 1}
    async with scripted_service(tmp_path, Script(), settings) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=100) as client:
            answer = await client.post("/v1/embeddings", json={"model": "vectors", "input": "Hello"})
    assert (answer.status_code, answer.json()["model"]) == (200, "vectors")
    assert len(answer.json()["data"][0]["embedding"]) == 576


async def test_a_name_that_nobody_has_is_told_when_it_is_used(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script(), {"embedding_model": Path("nothing")}) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=100) as client:
            answer = await client.post("/v1/embeddings", json={"input": "Hello"})
    assert answer.status_code == 503
    assert "nothing cannot be read" in answer.json()["error"]["message"]
