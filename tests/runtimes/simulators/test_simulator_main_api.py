"""The simulator of main_api_* does what the real program was seen to do (its numbers: runtime contracts, section 2)."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_tokenizer import ScriptedTokenizer, scripted_tokenizer

SIMULATOR = Path(__file__).parents[3] / "qwen_service" / "simulators" / "main_api"
DEADLINE = 20.0
REFUSED = "error: SetKVCache failed: -1,the context may be full,please reset"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """One running simulator and its two HTTP neighbours."""

    def __init__(self, folder: Path, tokenizer: ScriptedTokenizer, port: int, **environment: str) -> None:
        self.port, self.records = port, folder / f"kv-{port}.jsonl"
        embed = folder / "embed.bin"
        embed.write_bytes(b"")
        flags = {
            "system_prompt": "be kind", "template_filename_axmodel": "l%d.axmodel", "axmodel_num": "3",
            "url_tokenizer_model": tokenizer.url, "filename_post_axmodel": "post.axmodel",
            "filename_tokens_embed": str(embed), "tokens_embed_num": "100", "tokens_embed_size": "8",
            "use_mmap_load_embed": "1", "devices": "0",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, str(SIMULATOR), *(part for name, value in flags.items() for part in (f"--{name}", value))],
            env={**os.environ, "SIM_PORT": str(port), "SIM_RECORD": str(self.records), **environment},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        self.log = b""
        for line in self.process.stdout:
            self.log += line
            if b"Server running on port" in line:
                until(self.listens)
                break

    def listens(self) -> bool:
        """It says so first, and does it then."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request(method, path, body if isinstance(body, str) else json.dumps(body))
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, json.loads(data) if data else None

    def provider(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("GET", "/api/generate_provider")[1]
        return answer

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = self.records.read_text().splitlines() if self.records.exists() else []
        return [event for event in map(json.loads, lines) if not name or event["event"] == name]

    def settle(self, name: str, count: int = 1) -> str:
        """Wait for the `count`th event of that name and for the program to be idle; the text it handed out."""
        until(lambda: len(self.events(name)) >= count)
        texts = []
        until(lambda: texts.append(answer := self.provider()) or answer["done"])  # type: ignore[func-returns-value]
        return "".join(answer["response"] for answer in texts)

    def generate(self, count: int = 1, **fields: object) -> str:
        assert self.call("POST", "/api/generate", {"prompt": "key", **fields}) == (200, {"status": "ok"})
        return self.settle("reply", count)

    def reset(self, count: int = 1) -> None:
        assert self.call("POST", "/api/reset", {}) == (200, {"status": "ok"})
        self.settle("reset", count)

    def dies_of(self) -> int:
        return self.process.wait(DEADLINE)


@pytest.fixture
def tokenizer() -> Iterator[ScriptedTokenizer]:
    with scripted_tokenizer() as server:
        yield server


Launch = Callable[..., Program]


@pytest.fixture
def launch(tmp_path: Path, tokenizer: ScriptedTokenizer) -> Iterator[Launch]:
    started: list[Program] = []

    def start(*, port: int | None = None, **environment: str) -> Program:
        started.append(Program(tmp_path, tokenizer, port or free_port(), **environment))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.communicate()


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join(DEADLINE)


def test_start_asks_for_uid_bos_eos_and_system_prompt_but_prefills_nothing(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch()
    assert [route for route, _ in tokenizer.calls] == ["/get_uid", "/bos_id", "/eos_id", "/reset"]
    assert tokenizer.bodies("/reset") == [{"uid": "u1", "system_prompt": "be kind"}]
    assert program.events() == []
    assert b"max_token_len : 2559" in program.log


def test_only_diff_is_prefilled_after_what_is_held(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[7, 8]")
    tokenizer.answers["/encode"] = (200, {"token_ids": [50, 51, 52], "diff": [4, 5]})
    program.reset()
    program.generate()
    assert [(event["event"], event["kv"]) for event in program.events()] == [
        ("reset", [1, 2, 3]),
        ("prompt", [1, 2, 3, 4, 5]),
        ("reply", [1, 2, 3, 4, 5, 7, 8]),
    ]


def test_decode_is_called_per_three_ids_and_at_the_end_with_all(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    assert launch(SIM_REPLY="[21, 22, 23, 24]").generate() == "<21><22><23><24>"
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")] == [[21, 22, 23], [24], [21, 22, 23, 24]]


def test_chat_answers_only_the_first_message_and_decodes_once(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    messages = [{"role": "system", "content": "first"}, {"role": "user", "content": "second"}]
    status, body = launch(SIM_REPLY="[21, 22, 23, 24]").call("POST", "/api/chat", {"messages": messages})
    assert (status, body) == (200, {"done": True, "message": "<21><22><23><24>"})
    assert tokenizer.bodies("/encode") == [{"uid": "u1", "text": "first", "img_prompt": False}]
    assert len(tokenizer.bodies("/decode")) == 1


def test_it_refuses_everything_while_anything_runs(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[21]", SIM_STEP="1")
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: bool(tokenizer.bodies("/encode")))
    for route in ("reset", "generate", "chat"):
        assert program.call("POST", f"/api/{route}", {}) == (400, {"error": "llm is running"})


def test_bad_bodies_are_400_and_wrong_types_an_empty_500(launch: Launch) -> None:
    program = launch()
    assert program.call("POST", "/api/generate", "{") == (400, {"error": "Invalid request format"})
    assert program.call("POST", "/api/generate", {}) == (400, {"error": "Invalid request format"})
    assert program.call("POST", "/api/generate", {"prompt": 1}) == (500, None)
    assert program.call("GET", "/health") == (404, None)


def test_a_chat_right_after_a_reset_runs_before_it(launch: Launch) -> None:
    program = launch(SIM_REPLY="[7]", SIM_GAP="0.5")
    program.call("POST", "/api/reset", {})
    assert program.provider()["done"]  # it has not begun
    program.call("POST", "/api/chat", {"messages": [{"role": "user", "content": "x"}]})
    program.settle("reset")
    assert [event["event"] for event in program.events()] == ["prompt", "reply", "reset"]


def test_the_loser_of_two_parallel_chats_gets_an_empty_message(launch: Launch) -> None:
    program = launch(SIM_REPLY="[7]", SIM_CHATS="2")
    answers: list[Any] = []

    def chat() -> None:
        answers.append(program.call("POST", "/api/chat", {"messages": [{"role": "user", "content": "x"}]})[1])

    with in_background(chat):
        chat()
    assert sorted(answer["message"] for answer in answers) == ["", "<7>"]


def test_unread_text_precedes_the_next_reply(launch: Launch) -> None:
    program = launch(SIM_REPLY="[7]")
    messages = {"prompt": "key"}
    program.call("POST", "/api/generate", messages)
    until(lambda: len(program.events("reply")) == 1)
    assert program.generate(2) == "<7><7>"


def test_a_stop_during_encode_is_lost(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[21, 22]")
    tokenizer.delay = 0.3
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: bool(tokenizer.bodies("/encode")))
    program.call("GET", "/api/stop")
    program.settle("reply")
    assert program.events("reply")[0]["ids"] == [21, 22]


def stop_in_prefill(program: Program, tokenizer: ScriptedTokenizer, count: int) -> dict[str, Any]:
    """The `count`th reply, stopped in its first step of 1 s."""
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: len(tokenizer.bodies("/encode")) == count)
    time.sleep(0.4)  # into the middle of the prefill step
    program.call("GET", "/api/stop")
    program.settle("reply", count)
    return program.events("reply")[-1]


def test_a_stop_during_prefill_gives_one_garbage_token_and_forgets_the_turn(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch(SIM_REPLY="[21, 22]", SIM_STEP="1")
    program.reset()
    program.generate()
    before = program.events("reply")[0]["kv"]
    stopped = stop_in_prefill(program, tokenizer, 2)
    assert stopped == {"event": "reply", "kv": before, "ids": [7], "corrupt": False}


def test_a_stop_during_prefill_right_after_a_reset_leaves_a_wrong_length_and_who_continues_it_is_recorded(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch(SIM_REPLY="[21, 22]", SIM_STEP="1")
    program.generate()
    program.reset()
    stopped = stop_in_prefill(program, tokenizer, 2)
    assert (stopped["kv"], stopped["corrupt"]) == ([1, 2, 3, 4], True)  # as long as the conversation before
    program.generate(3)
    assert program.events("corrupt")
    assert program.events("reply")[-1]["ids"] == [7] * 5
    program.reset(2)
    program.generate(4)
    assert program.events("reply")[-1]["ids"] == [21, 22]


def test_a_reset_to_no_ids_takes_no_step(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[21, 22]", SIM_STEP="60")
    tokenizer.answers["/reset"] = (200, {"token_ids": []})
    program.reset()
    assert program.events("reset") == [{"event": "reset", "kv": [], "computed": 0}]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_stop_while_a_decode_is_unanswered_ends_the_reply_before_the_next_step(
    launch: Launch, tokenizer: ScriptedTokenizer, batch: int
) -> None:
    program = launch(SIM_REPLY=json.dumps(list(range(20, 60))))
    tokenizer.held_decode = batch
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: len(tokenizer.bodies("/decode")) == batch)
    program.call("GET", "/api/stop")
    tokenizer.release.set()
    program.settle("reply")
    ids = list(range(20, 20 + 3 * batch))
    assert program.events("reply") == [{"event": "reply", "kv": [4, 5, *ids[:-1]], "ids": ids, "corrupt": False}]
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == ids


def test_any_other_stop_of_a_reply_falls_between_two_layers(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY=json.dumps(list(range(20, 60))), SIM_TOKEN="1")
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: bool(tokenizer.bodies("/decode")))
    time.sleep(0.4)  # into the middle of a step
    program.call("GET", "/api/stop")
    program.settle("reply")
    reply = program.events("reply")[0]
    assert (reply["ids"], reply["kv"], reply["corrupt"]) == ([20, 21, 22, 22], [4, 5, 20, 21, 22], True)


def test_a_build_that_stays_running_after_a_refusal_takes_nothing_more(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch(SIM_LARGEST="256", SIM_REFUSE="stuck")
    tokenizer.answers["/encode"] = (200, {"token_ids": [], "diff": [4] * 129})
    program.reset()
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: program.provider()["response"] == REFUSED)
    assert program.call("POST", "/api/reset", {})[0] == 400
    assert not program.provider()["done"]


def test_a_stop_during_generation_leaves_the_last_id_out_of_the_kv(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch(SIM_REPLY=json.dumps(list(range(20, 60))), SIM_TOKEN="0.05")
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: bool(tokenizer.bodies("/decode")))
    program.call("GET", "/api/stop")
    program.settle("reply")
    reply = program.events("reply")[0]
    assert reply["kv"] == [4, 5, *reply["ids"][:-1]]
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == reply["ids"]


def test_an_idle_stop_has_no_effect(launch: Launch) -> None:
    program = launch(SIM_REPLY="[21]")
    program.call("GET", "/api/stop")
    assert program.generate() == "<21>"


def test_the_first_id_is_not_tested_for_eos(launch: Launch) -> None:
    program = launch(SIM_REPLY="[[9, 30], []]")
    assert program.generate() == "<9><30>"
    program.generate(2)
    assert [event["ids"] for event in program.events("reply")] == [[9, 30], [9]]
    assert program.events("reply")[1]["kv"] == [4, 5, 9, 30, 4, 5, 9]


def test_a_prompt_that_does_not_fit_is_refused_and_so_is_everything_until_a_reset(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    program = launch(SIM_REPLY="[21]", SIM_LARGEST="256")
    tokenizer.answers["/encode"] = (200, {"token_ids": [], "diff": [4] * 129})  # 253 are free: one step of 128
    program.reset()
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: program.provider()["response"] == REFUSED)
    tokenizer.answers["/encode"] = (200, {"token_ids": [], "diff": [4]})
    program.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: program.provider()["response"] == REFUSED)
    program.reset(2)
    assert program.generate() == "<21>"


def test_an_overlong_prompt_with_nothing_held_aborts(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_LARGEST="256")
    tokenizer.answers["/encode"] = (200, {"token_ids": [], "diff": [4] * 257})
    program.call("POST", "/api/generate", {"prompt": "key"})
    assert program.dies_of() == -signal.SIGABRT


def test_a_reply_just_ends_at_the_context_limit(launch: Launch) -> None:
    program = launch(SIM_REPLY=json.dumps(list(range(20, 90))), SIM_CONTEXT="32")
    program.generate()
    reply = program.events("reply")[0]
    assert len([4, 5, *reply["ids"]]) == 32
    assert reply["kv"] == [4, 5, *reply["ids"][:-1]]


def test_sampling_values_stay_until_changed(launch: Launch) -> None:
    program = launch(SIM_REPLY="[21]")
    program.generate(temperature=0.5)
    program.generate(2, **{"top-k": 1})
    assert program.events("prompt")[1]["sampling"] == {
        "temperature": 0.5, "repetition_penalty": 1.0, "top-p": 0.8, "top-k": 1,
    }  # fmt: skip


def test_a_failed_encode_answers_the_previous_prompt_again(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[21]")
    program.generate()
    tokenizer.answers["/encode"] = (500, {})
    program.generate(2)
    assert program.events("prompt")[1]["kv"] == [4, 5, 21, 4, 5]


def test_an_encode_without_ids_aborts_generate_and_leaves_chat_running(
    launch: Launch, tokenizer: ScriptedTokenizer
) -> None:
    tokenizer.answers["/encode"] = (200, {})
    aborting, stuck = launch(), launch()
    aborting.call("POST", "/api/generate", {"prompt": "key"})
    assert aborting.dies_of() == -signal.SIGABRT
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    connection = http.client.HTTPConnection("127.0.0.1", stuck.port, timeout=DEADLINE)
    connection.request("POST", "/api/chat", body)
    until(lambda: len(tokenizer.bodies("/encode")) == 2)
    assert stuck.call("POST", "/api/generate", {"prompt": "key"})[0] == 400
    connection.close()


def test_a_closed_tokenizer_connection_is_a_segfault(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch()
    tokenizer.answers["/encode"] = None
    program.call("POST", "/api/generate", {"prompt": "key"})
    assert program.dies_of() == -signal.SIGSEGV


def test_a_failed_reset_call_uses_the_previous_system_prompt(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch()
    tokenizer.answers["/reset"] = (500, {})
    program.reset()
    assert program.events("reset")[0]["kv"] == [1, 2, 3]


def test_last_reply_survives_a_reset(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    program = launch(SIM_REPLY="[21]")
    program.generate()
    program.reset()
    program.generate(2)
    assert [body.get("last_reply") for body in tokenizer.bodies("/encode")] == [None, "<21>"]


def test_two_instances_share_one_port_without_an_error(launch: Launch) -> None:
    first = launch()
    second = launch(port=first.port)
    assert b"Server running" in second.log
    assert first.process.poll() is None


def test_sigint_exits_when_idle_and_waits_for_a_running_reply(launch: Launch, tokenizer: ScriptedTokenizer) -> None:
    idle, busy = launch(), launch(SIM_REPLY="[21, 22, 23, 24, 25]", SIM_TOKEN="0.1")
    idle.process.send_signal(signal.SIGINT)
    assert idle.dies_of() == 0
    busy.call("POST", "/api/generate", {"prompt": "key"})
    until(lambda: bool(tokenizer.bodies("/encode")))
    busy.process.send_signal(signal.SIGINT)
    assert busy.dies_of() == 0
    assert busy.events("reply")[0]["ids"] == [21, 22, 23, 24, 25]


def test_sigterm_kills(launch: Launch) -> None:
    program = launch()
    program.process.terminate()
    assert program.dies_of() == -signal.SIGTERM


def test_the_log_is_held_back_by_a_block_buffer(launch: Launch) -> None:
    program = launch(SIM_REPLY="[21]")
    program.generate()
    assert program.process.stdout
    os.set_blocking(program.process.stdout.fileno(), False)
    assert program.process.stdout.read() is None
    program.process.send_signal(signal.SIGINT)
    program.dies_of()
    assert b"precompute_len:3, remaining:2045" in program.process.stdout.read()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("no_device", b"no device connected"),
        ("axcl_init", b"axcl init fail, ret = 0x8030010b"),
        ("held_card", b"Set AXCL device failed{0x80300186}"),
        ("layer", b"init axmodel(l1.axmodel) failed"),
    ],
)
def test_a_failure_while_loading_exits_255_with_an_error_line(launch: Launch, kind: str, line: bytes) -> None:
    program = launch(SIM_FAIL=kind)
    assert program.dies_of() == 255
    assert b"[E]" in program.log
    assert line in program.log


def test_unknown_and_missing_flags_are_refused(tmp_path: Path) -> None:
    for flags in (["--live_print", "1"], ["--axmodel_num", "3"]):
        assert subprocess.run([SIMULATOR, *flags], capture_output=True, check=False).returncode == 1
    board = tmp_path / "main_api_ax650"
    board.symlink_to(SIMULATOR)
    refused = subprocess.run([board, "--devices", "0"], capture_output=True, check=False)
    assert b"undefined option: --devices" in refused.stderr
