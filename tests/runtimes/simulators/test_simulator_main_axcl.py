"""The simulator of main_axcl_* does what the real program was seen to do (runtime contracts, section 1)."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripted_tokenizer import ScriptedTokenizer, scripted_tokenizer

SIMULATOR = Path(__file__).parents[3] / "qwen_service" / "simulators" / "main_axcl"
DEADLINE = 20.0  # seconds


class Program:
    """One running simulator; `output` is what it has flushed so far."""

    def __init__(self, url: str, folder: Path, *more: str, **environment: str) -> None:
        embedding = folder / "embed.bin"
        embedding.touch()
        flags = ("--template_filename_axmodel", "l%d.axmodel", "--axmodel_num", "28", "--filename_tokenizer_model", url, "--url_tokenizer_model", url,
                 "--filename_tokens_embed", str(embedding), "--live_print", "1", "--continue", "1", *more)  # fmt: skip
        if "--prompt" not in more:
            flags += ("--prompt", "")
        self.process = subprocess.Popen(
            [SIMULATOR, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "SIM_REPLY": "[5, 6, 7, 8]", **environment},
        )
        self.output = b""

    def until(self, marker: bytes) -> bytes:
        """Read up to `marker`; returns what came before it since the last call."""
        assert self.process.stdout
        end = time.monotonic() + DEADLINE
        while marker not in self.output:
            assert select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0], self.output
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"ended without {marker!r}: {self.output!r}"
            self.output += data
        before, _, self.output = self.output.partition(marker)
        return before

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def code(self) -> int:
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def tokenizer() -> Iterator[ScriptedTokenizer]:
    with scripted_tokenizer() as server:
        yield server


def until_asked(tokenizer: ScriptedTokenizer, path: str, times: int = 1) -> None:
    end = time.monotonic() + DEADLINE
    while len(tokenizer.bodies(path)) < times:
        assert time.monotonic() < end, f"{path} was not asked {times} times"
        time.sleep(0.005)  # another process: nothing to wait for but the clock


class Start:
    def __init__(self, tokenizer: ScriptedTokenizer, folder: Path) -> None:
        self._tokenizer, self._folder = tokenizer, folder
        self.started: list[Program] = []

    def __call__(self, *flags: str, **environment: str) -> Program:
        program = Program(self._tokenizer.url, self._folder, *flags, **environment)
        self.started.append(program)
        return program


@pytest.fixture
def start(tokenizer: ScriptedTokenizer, tmp_path: Path) -> Iterator[Start]:
    start = Start(tokenizer, tmp_path)
    yield start
    for program in start.started:
        program.close()


def test_it_loads_with_progress_frames_and_ends_in_a_marker_without_a_newline(start: Start) -> None:
    program = start()
    banner = program.until(b">> ").decode()
    assert banner.startswith("build time: ")
    assert "\r 54% | " in banner
    assert re.search(r"\b17 / +31\b", banner)
    for text in ("LLM init start", "bos_id: -1, eos_id: 9\n", "max_token_len : 1024", "LLM init ok"):
        assert text in banner
    assert banner.endswith('Type "q" to exit, Ctrl+c to stop current running\n')


def test_a_reply_is_decoded_in_threes_and_then_as_a_whole(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start()
    program.until(b">> ")
    program.send(b"key\n")
    printed = program.until(b">> ").decode()
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")] == [[5, 6, 7], [8], [5, 6, 7, 8]]
    assert printed.startswith("<5><6><7><8>\n\n")
    assert "hit eos,avg " in printed
    assert tokenizer.bodies("/encode") == [{"text": "key"}]


def test_each_newline_ends_a_prompt_and_an_empty_line_gives_another_marker(
    start: Start, tokenizer: ScriptedTokenizer
) -> None:
    program = start(SIM_REPLY="[]")
    program.until(b">> ")
    program.send(b"<|im_start|>system\r\n\nhello\n")
    for _ in range(3):
        program.until(b">> ")
    assert [body["text"] for body in tokenizer.bodies("/encode")] == ["<|im_start|>system\r", "hello"]
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")] == [[], []]


def test_q_ends_it_and_what_comes_after_is_not_run(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start()
    program.until(b">> ")
    program.send(b"q\nhello\n")
    assert program.code() == 0
    assert not tokenizer.bodies("/encode")


def test_invalid_utf8_aborts(start: Start) -> None:
    program = start()
    program.until(b">> ")
    program.send(b"\xff\n")
    assert program.code() == -signal.SIGABRT


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ((500, {}), signal.SIGSEGV),
        ((200, {"token_ids": []}), signal.SIGSEGV),
        ((200, {"token_ids": [151936]}), signal.SIGSEGV),
        ((200, {}), signal.SIGABRT),
        (None, signal.SIGSEGV),
    ],
)
def test_a_bad_answer_to_encode_kills_it(
    start: Start, tokenizer: ScriptedTokenizer, answer: tuple[int, dict[str, object]] | None, end: int
) -> None:
    tokenizer.answers["/encode"] = answer
    program = start()
    program.until(b">> ")
    program.send(b"key\n")
    assert program.code() == -end


def test_an_answer_after_more_than_a_second_kills_it_and_one_before_does_not(
    start: Start, tokenizer: ScriptedTokenizer
) -> None:
    program = start(SIM_REPLY="[]")
    program.until(b">> ")
    tokenizer.delay = 0.6
    program.send(b"key\n")
    program.until(b">> ")
    tokenizer.delay = 1.5
    program.send(b"key\n")
    assert program.code() == -signal.SIGSEGV


def test_a_url_with_a_trailing_slash_or_without_a_server_kills_it_silently(start: Start, tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/", "http://127.0.0.1:9"):
        program = Program(url, tmp_path)
        assert program.process.communicate(timeout=DEADLINE)[0] == b""
        assert program.process.returncode == -signal.SIGSEGV


def test_sigint_within_a_step_leaves_a_bogus_token_that_may_fill_a_batch(
    start: Start, tokenizer: ScriptedTokenizer
) -> None:
    program = start(SIM_REPLY="endless", SIM_TOKEN_MS="200", SIM_BOGUS="1")
    program.until(b">> ")
    for shown in (1002, 1005):
        program.send(b"key\n")
        program.until(f"<{shown}>".encode())
        time.sleep(0.5)  # into the middle of the third step from here
        program.process.send_signal(signal.SIGINT)
        program.until(b">> ")
        *batches, whole = [body["token_ids"] for body in tokenizer.bodies("/decode")]
        tokenizer.calls.clear()
        assert whole[-1] == whole[-2]
        assert batches == [whole[place : place + 3] for place in range(0, len(whole) - 2, 3)]


def test_sigint_while_a_decode_is_unanswered_ends_the_reply_before_the_next_step(
    start: Start, tokenizer: ScriptedTokenizer
) -> None:
    program = start(SIM_REPLY="endless", SIM_BOGUS="1")
    program.until(b">> ")
    tokenizer.held_decode = 2
    program.send(b"key\n")
    until_asked(tokenizer, "/decode", 2)
    program.process.send_signal(signal.SIGINT)
    tokenizer.release.set()
    program.until(b">> ")
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")][2:] == [list(range(1000, 1006))]


def test_a_context_build_that_was_stopped_between_two_layers_is_corrupt_and_who_continues_it_is_recorded(
    start: Start, tokenizer: ScriptedTokenizer, tmp_path: Path
) -> None:
    record = tmp_path / "kv.jsonl"
    program = start(
        "--system_prompt",
        "be kind",
        SIM_REPL="context",
        SIM_REPLY="endless",
        SIM_TOKEN_MS="500",
        SIM_RECORD=str(record),
    )
    program.until(b"prompt >> ")
    program.send(b"key\n")
    program.until(b"<1002>")
    time.sleep(0.25)  # into the middle of a step
    program.process.send_signal(signal.SIGINT)
    program.until(b"prompt >> ")
    program.send(b"key\n")
    program.until(b"prompt >> ")
    events = [json.loads(line) for line in record.read_text().splitlines()]
    assert [event["event"] for event in events][:4] == ["reset", "prompt", "reply", "corrupt"]
    assert events[2]["corrupt"]
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == [7] * 5


def test_sigint_is_lost_when_idle_and_before_the_run_begins(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start(SIM_GAP_MS="600")
    program.until(b">> ")
    program.process.send_signal(signal.SIGINT)
    program.send(b"key\n")
    until_asked(tokenizer, "/encode")
    program.process.send_signal(signal.SIGINT)
    program.until(b">> ")
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == [5, 6, 7, 8]


def test_the_context_ends_a_reply_and_a_longer_prompt_answers_empty(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start(SIM_REPLY="endless", SIM_CONTEXT="10")
    program.until(b">> ")
    program.send(b"key\n")
    program.until(b">> ")
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007]
    tokenizer.answers["/encode"] = (200, {"token_ids": list(range(10, 30))})
    program.send(b"key\n")
    program.until(b">> ")
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == []


def test_at_the_end_of_stdin_it_prints_markers_for_ever(start: Start) -> None:
    program = start()
    program.until(b">> ")
    assert program.process.stdin
    program.process.stdin.close()
    for _ in range(1000):
        program.until(b">> ")
    assert program.process.stdout
    program.process.stdout.close()  # its reader is gone
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(0.3)


def test_post_config_is_read_at_start_and_must_be_complete(start: Start, tmp_path: Path) -> None:
    assert b"greedy" in start().until(b">> ")
    (tmp_path / "post_config.json").write_text('{"temperature": 0.5}')
    assert start().code() == -signal.SIGABRT


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        ("no_device", 255, b"no device connected"),
        ("axcl_init", 255, b"axcl init fail, ret = 0x8030010b"),
        ("layer", 255, b"init axmodel"),
        ("libraries", 127, b""),
        ("early", -signal.SIGSEGV, b""),
    ],
)
def test_it_fails_to_load_as_told(start: Start, failure: str, code: int, text: bytes) -> None:
    output = start(SIM_FAIL=failure).process.communicate(timeout=DEADLINE)[0]
    assert start.started[0].process.returncode == code
    assert text in output
    assert (output == b"") == (text == b"")


def test_an_npu_error_is_only_printed_and_one_token_repeats(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start(SIM_REPLY="endless", SIM_FAULT="npu:3", SIM_CONTEXT="30")
    program.until(b">> ")
    program.send(b"key\n")
    assert b"AX_ENGINE_Execute failed" in program.until(b">> ")
    assert set(tokenizer.bodies("/decode")[-1]["token_ids"][3:]) == {1002}


def test_it_dies_in_mid_reply_as_told(start: Start) -> None:
    for fault, end in (("segv", signal.SIGSEGV), ("kill", signal.SIGKILL)):
        program = start(SIM_REPLY="endless", SIM_FAULT=f"{fault}:7")
        program.until(b">> ")
        program.send(b"key\n")
        assert program.code() == -end


def test_a_wrong_command_line_is_refused(start: Start) -> None:
    assert start("--system_promt", "x").code() == 1


def test_the_context_build_keeps_its_cache_and_speaks_with_a_uid(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start("--system_prompt", "be kind", SIM_REPL="context", SIM_REPLY="echo")
    assert b"precompute_len: 3" in program.until(b"prompt >> ")
    assert tokenizer.bodies("/reset") == [{"system_prompt": "be kind", "uid": "u1"}] * 2
    program.send(b"key\n")
    program.until(b"prompt >> ")
    assert tokenizer.bodies("/encode")[0]["uid"] == "u1"
    assert tokenizer.bodies("/decode")[-1] == {"token_ids": [1, 2, 3, 4, 5], "uid": "u1"}
    program.send(b"key\n")
    program.until(b"prompt >> ")
    assert tokenizer.bodies("/decode")[-1]["token_ids"] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 4, 5]


def test_the_context_build_does_not_test_its_first_id_for_the_end(start: Start, tokenizer: ScriptedTokenizer) -> None:
    program = start("--system_prompt", "be kind", SIM_REPL="context", SIM_REPLY="[]")
    program.until(b"prompt >> ")
    program.send(b"key\n")
    program.until(b"prompt >> ")
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")] == [[9], [9]]


def test_a_stop_during_the_prefill_of_a_context_build_leaves_one_garbage_id(
    start: Start, tokenizer: ScriptedTokenizer
) -> None:
    tokenizer.answers["/encode"] = (200, {"token_ids": [4] * 500, "diff": [4] * 500})
    program = start("--system_prompt", "be kind", SIM_REPL="context", SIM_TOKEN_MS="200")
    program.until(b"prompt >> ")
    program.send(b"key\n")
    until_asked(tokenizer, "/encode")
    time.sleep(0.3)  # into the second of four steps
    program.process.send_signal(signal.SIGINT)
    program.until(b"prompt >> ")
    assert [body["token_ids"] for body in tokenizer.bodies("/decode")] == [[7]]
