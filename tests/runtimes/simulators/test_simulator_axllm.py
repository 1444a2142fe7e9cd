"""The simulator of axllm has the faults of the real one (runtime contracts, section 4)."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtimes.simulators.test_simulator_main_api import free_port, until

SIMULATOR = Path(__file__).parents[2] / "simulators" / "axllm"


class Server:
    def __init__(self, folder: Path, config: dict[str, object], environment: dict[str, str]) -> None:
        self.record = folder / "record.jsonl"
        port = free_port()
        (folder / "config.json").write_text(json.dumps({"port": port, **config}))
        self.process = subprocess.Popen(
            [sys.executable, str(SIMULATOR), "serve", str(folder)],
            env={**os.environ, "SIM_RECORD": str(self.record), **environment},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        self.log = b""
        while b"Starting server" not in self.log and (line := self.process.stdout.readline()):
            self.log += line
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)
        if self.log:
            until(self.listens)

    def listens(self) -> bool:
        try:
            return self.process.poll() is not None or self.client.get("/health").status_code == 200
        except httpx.ConnectError:
            return False

    def post(self, text: str, **fields: object) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=request(text, **fields))

    def chunks(self, text: str, **fields: object) -> list[str]:
        """The data of each server-sent event."""
        body = self.post(text, stream=True, **fields).text
        return [line.removeprefix("data: ") for line in body.splitlines() if line]

    def content(self, text: str, **fields: object) -> str:
        deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in self.chunks(text, **fields)[:-1]]
        return "".join(delta.get("content", "") for delta in deltas)

    def computed(self) -> list[str]:
        return [event["token"] for event in self.events() if "token" in event]

    def prefilled(self) -> list[tuple[int, int]]:
        """Of each request, which slot it got and how many ids were computed."""
        return [(event["slot"], event["prefill"]) for event in self.events() if "slot" in event]

    def events(self) -> list[dict[str, Any]]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [json.loads(line) for line in lines]


def request(text: str, **fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "enable_thinking": False, **fields}


Launch = Callable[..., Server]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Server] = []

    def start(config: dict[str, object] | None = None, **environment: str) -> Server:
        started.append(Server(tmp_path, config or {}, environment))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()
        server.client.close()


def test_it_lists_its_model_and_calls_itself_healthy_always(launch: Launch) -> None:
    server = launch({"model_name": "AXERA-TECH/Qwen3-4B"}, SIM_FAULT="hang:0")
    assert server.client.get("/v1/models").json()["data"][0]["id"] == "AXERA-TECH/Qwen3-4B"
    assert server.client.get("/health").json() == {"status": "healthy"}


def test_the_devices_of_the_environment_win(launch: Launch) -> None:
    assert b"devices 2,3" in launch({"devices": [0]}, AXLLM_DEVICES="2,3").log


def test_a_stream_always_ends_with_stop_and_counts_nothing(launch: Launch) -> None:
    *_, finish, done = launch().chunks("one two three", max_tokens=2, stop=["two"])
    assert json.loads(finish)["choices"][0]["finish_reason"] == "stop"
    assert json.loads(finish)["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert done == "[DONE]"


def test_max_tokens_bounds_a_reply_and_stop_strings_are_not_applied(launch: Launch) -> None:
    assert launch().content("one two three", max_tokens=2, stop=["one"]) == "one two "


def test_thinking_comes_inline(launch: Launch) -> None:
    assert launch().content("hello", enable_thinking=True) == "<think>\nLet me see.\n</think>\n\nhello "


def test_overlapping_requests_get_each_others_text(launch: Launch) -> None:
    server = launch(SIM_CONCURRENCY="2", SIM_TOKEN="0.02")
    texts: dict[str, str] = {}

    def ask(letter: str) -> None:
        texts[letter] = server.content(" ".join(letter * 20))

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts != {"a": "a " * 20, "b": "b " * 20}


@pytest.mark.parametrize("status", [503, 429])
def test_a_full_queue_is_refused_after_a_while(launch: Launch, status: int) -> None:
    server = launch(SIM_FULL_AFTER="0.1", SIM_FULL_STATUS=str(status), SIM_FAULT="hang:1")
    with server.client.stream("POST", "/v1/chat/completions", json=request("one two", stream=True)) as first:
        next(first.iter_lines())
        assert server.post("three").status_code == status


def test_an_error_is_a_400_with_an_empty_completion(launch: Launch) -> None:
    response = launch().client.post("/v1/chat/completions", content=b"{")
    assert response.status_code == 400
    assert response.json()["choices"][0]["message"]["content"] == ""


def talk(system: str, *turns: str) -> list[dict[str, str]]:
    """A system message, then the user's and the model's in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *said]


LONG = " ".join(f"one{number}" for number in range(200))
OTHER = " ".join(f"two{number}" for number in range(200))


def test_each_conversation_has_a_slot_where_they_begin_differently(launch: Launch) -> None:
    server = launch({"kv_cache_slots": 2})
    assert b"multi-slot prefix KV cache enabled: slots=2 location=device" in server.log
    for head in (LONG, OTHER, LONG, OTHER):
        server.post("", messages=talk(head, "hello"))
    (first, _), (second, _), *again = server.prefilled()
    assert (first, second) == (0, 1)
    assert [slot for slot, _ in again] == [0, 1]
    assert max(computed for _, computed in again) < 20


def test_conversations_with_one_head_overwrite_each_other_although_a_slot_is_free(launch: Launch) -> None:
    server = launch({"kv_cache_slots": 2})
    for question in (LONG, OTHER, LONG):
        server.post("", messages=talk("You are a patient teacher of physics and of music.", question))
    assert {slot for slot, _ in server.prefilled()} == {0}
    assert server.prefilled()[2][1] > 200


def test_when_all_slots_are_taken_a_new_conversation_overwrites_the_most_recent_one(launch: Launch) -> None:
    server = launch({"kv_cache_slots": 2})
    for head in (LONG, OTHER, " ".join(LONG.split()[::-1])):
        server.post("", messages=talk(head, "hello"))
    assert [slot for slot, _ in server.prefilled()] == [0, 1, 1]


def test_a_short_prompt_is_computed_afresh_and_empties_the_slot_that_it_has_something_in_common_with(
    launch: Launch,
) -> None:
    server = launch({"kv_cache_slots": 2})
    head = "You are a patient teacher of physics and of music."
    for question in (LONG, "hello", LONG):
        server.post("", messages=talk(head, question))
    assert [slot for slot, _ in server.prefilled()] == [0, 0, 0]
    assert min(computed for _, computed in server.prefilled()[::2]) > 200


def test_one_slot_keeps_what_the_next_prompt_has_in_common(launch: Launch) -> None:
    server = launch()
    for question in ("hello", "other"):
        server.post("", messages=talk(LONG, question))
    assert server.prefilled()[1][1] < 20
    assert b"kv slot" not in server.log


@pytest.mark.parametrize(("free", "made"), [(6474, 4), (400, 2), (300, 1)])
def test_slots_that_do_not_fit_are_not_made(launch: Launch, free: int, made: int) -> None:
    server = launch({"kv_cache_slots": 4}, SIM_FREE_MB=str(free))
    assert f"max_slots={1 + max(0, free - 256) // 139}".encode() in server.log
    assert (b"disabled" in server.log) == (made == 1)
    assert (f"only fits {made}" in server.log.decode()) == (made < 4)


def test_slots_are_ignored_where_layers_are_loaded_as_they_are_needed(launch: Launch) -> None:
    assert b"kv_cache_slots=4 ignored" in launch({"kv_cache_slots": 4, "dynamic_load_enable": True}).log


def test_a_model_with_eyes_compares_messages(launch: Launch) -> None:
    server = launch({"kv_cache_slots": 2, "vlm_type": "Qwen3VL"})
    for head in ("short one", "short two", "short one"):
        server.post("", messages=talk(head, "hello"))
    assert [slot for slot, _ in server.prefilled()] == [0, 1, 0]


def test_after_its_time_limit_a_stream_ends_without_a_finish_chunk(launch: Launch) -> None:
    *chunks, done = launch(SIM_TIME_LIMIT="0", SIM_TOKEN="0.01").chunks("one two")
    assert done == "[DONE]"
    assert all(json.loads(chunk)["choices"][0]["finish_reason"] is None for chunk in chunks)


def test_a_client_that_leaves_does_not_stop_the_npu(launch: Launch) -> None:
    server = launch(SIM_TOKEN="0.02")
    with server.client.stream("POST", "/v1/chat/completions", json=request("a b c d e f", stream=True)) as response:
        next(response.iter_lines())
    until(lambda: server.computed() == ["a ", "b ", "c ", "d ", "e ", "f "])


def test_tool_calls_can_come_in_the_native_form(launch: Launch) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    chunks = launch(SIM_REPLY=json.dumps([call]), SIM_TOOLS="native").chunks("x")
    function = json.loads(chunks[0])["choices"][0]["delta"]["tool_calls"][0]["function"]
    assert function == {"name": "f", "arguments": '{"x": 1}'}


def test_a_failed_load_exits_255(launch: Launch) -> None:
    server = launch(SIM_FAIL="load")
    assert server.process.wait(20) == 255
    assert b"axcl init fail" in server.log
