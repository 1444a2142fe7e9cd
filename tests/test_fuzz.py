"""Whatever a client sends that looks like a request: an answer or a documented error in the dialect's shape.

The bodies are made from the service's own OpenAPI description, and then damaged. `schemathesis` does the same from
outside, for longer: docs/reliability.md.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_service.app import create_app
from qwen_service.config import load_settings
from tests.asgi_calls import Answer, call
from tests.live_service import ScriptedEngine

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/admin/log-level",
)
DOCUMENTED = {200, 400, 404, 408, 409, 413, 422, 429, 501, 502, 503, 504, 529}

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


class Bodies:
    """Strategies for the JSON schemas of one description; one value in some is something else altogether."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._components = description["components"]["schemas"]
        self._paths = description["paths"]

    def of(self, route: str) -> st.SearchStrategy[Any]:
        body = self._paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return self._of(body, depth=0)

    def _of(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        if depth > 6:
            return st.none()
        if "$ref" in schema:
            return self._of(self._components[schema["$ref"].rpartition("/")[2]], depth + 1)
        if "anyOf" in schema or "oneOf" in schema:
            return st.one_of([self._of(choice, depth + 1) for choice in schema.get("anyOf") or schema["oneOf"]])
        if "enum" in schema or "const" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        match schema.get("type"):
            case "object" if "properties" in schema:
                return self._object(schema, depth)
            case "object":
                return st.dictionaries(st.text(max_size=5), JUNK, max_size=3)
            case "array":
                return st.lists(self._of(schema.get("items", {}), depth + 1), max_size=3)
            case "string":
                return st.text(max_size=12)
            case "integer":
                return st.integers(-2, 40) | st.integers()
            case "number":
                return st.floats(-2, 3) | st.floats()
            case "boolean":
                return st.booleans()
            case "null":
                return st.none()
        return JUNK

    def _object(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        fields = {name: self._of(field, depth + 1) for name, field in schema["properties"].items()}
        needed = {name: fields.pop(name) for name in schema.get("required", ())}
        few = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True) if fields else st.just([])
        return few.flatmap(lambda names: st.fixed_dictionaries(needed | {name: fields[name] for name in names}))


def damaged(bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def damage(parts: tuple[Any, str, Any]) -> Any:
        body, name, junk = parts
        return {**body, name: junk} if isinstance(body, dict) else junk

    names = st.sampled_from(
        ["messages", "input", "model", "stream", "stop", "tools", "options", "n", "think", "format", "x"]
    )
    return st.one_of(bodies, st.tuples(bodies, names, JUNK).map(damage), JUNK)


Ask = Callable[[str, bytes], Answer]


@pytest.fixture(scope="module")
def app_and_ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, Ask]]:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model.gguf").touch()
    with asyncio.Runner() as runner:
        engine = runner.run(_engine())
        chosen = load_settings({"model_path": folder / "model.gguf", "state_dir": folder, "models_dir": folder / "m"})
        app = create_app(chosen, loaders=engine.loaders, shut_down=lambda: None)
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())

        def ask(route: str, body: bytes) -> Answer:
            headers = {"content-type": "application/json", "content-length": str(len(body))}
            return runner.run(call(app, route, method="POST", headers=headers, body=[body], stay=True))

        yield app, ask
        runner.run(lifespan.__aexit__(None, None, None))


async def _engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.gate.set()
    return engine


@pytest.mark.parametrize("route", ROUTES)
def test_every_body_gets_an_answer_or_a_documented_error(route: str, app_and_ask: tuple[FastAPI, Ask]) -> None:
    app, ask = app_and_ask

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damaged(Bodies(app.openapi()).of(route)))
    def check(body: Any) -> None:
        answer = ask(route, _json(body))
        assert answer.status in DOCUMENTED, (answer.status, answer.body)
        if answer.status >= 400:
            error = orjson.loads(answer.body)["error"]
            assert isinstance(error, str) if route.startswith("/api/") else error["message"]

    check()


@pytest.mark.parametrize("route", ROUTES)
def test_bytes_that_are_no_json_are_refused(route: str, app_and_ask: tuple[FastAPI, Ask]) -> None:
    _, ask = app_and_ask

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=1, max_size=40))
    def check(body: bytes) -> None:
        assert 400 <= ask(route, b"{" + body).status < 500

    check()


def _json(value: Any) -> bytes:
    """As sloppy clients write it: NaN and lone surrogates included."""
    return json.dumps(value).encode()


def test_the_description_tells_of_errors_and_streams(app_and_ask: tuple[FastAPI, Ask]) -> None:
    paths = app_and_ask[0].openapi()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            if path.startswith(("/api/", "/v1/")) and path != "/v1/models/load":
                assert operation["responses"].keys() & {"default", "400", "4XX"}, path
    streams = {"/api/chat": "application/x-ndjson", "/v1/chat/completions": "text/event-stream"}
    for path, media_type in streams.items():
        assert media_type in paths[path]["post"]["responses"]["200"]["content"]


def test_the_folder_of_a_model_name_is_never_left(app_and_ask: tuple[FastAPI, Ask], tmp_path: Path) -> None:
    _, ask = app_and_ask
    for name in ("../../etc/passwd", "/etc/passwd", "..", "a/../../b", "\x00", "C:\\x", "~root", "%2e%2e/x"):
        for route in ("/v1/models/load", "/api/show", "/api/delete", "/api/pull"):
            answer = ask(route, orjson.dumps({"model": name, "stream": False}))
            assert answer.status in {400, 404, 405}, (route, name, answer)
