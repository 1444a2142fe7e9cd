import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_service import cli
from qwen_service.commands.serve import listen
from qwen_service.config import ConfigError
from qwen_service.settings import Settings
from tests import ROOT, preloaded
from tests.live_service import ScriptedEngine, live_service
from tests.service_process import is_alive
from tests.terminal import ENVIRONMENT, terminal


def test_help_tells_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, (_, text) in cli.COMMANDS.items():
        assert re.search(rf"^ +{name}\s", shown, re.MULTILINE)
        assert text.split()[0] in shown


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: qwen-service {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["serve", "--no-such-flag", "1"]])
def test_what_nobody_knows_is_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: qwen-service" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As in `qwen-service list --all | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "qwen_service", "list", "--all"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_wrong_setting_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "99999"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("qwen-service: --port: '99999' is not allowed")
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_told_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port), "--state-dir", str(tmp_path)]) == 1
    assert f"Another program has port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["chat", "--local", "hello"]])
@pytest.mark.parametrize("folder", ["state", "log"])
def test_a_folder_that_cannot_be_written_is_one_line_with_the_cure(
    command: list[str], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folders = {"state": tmp_path, "log": tmp_path, folder: tmp_path / "file" / "folder"}
    flags = [part for name, path in folders.items() for part in (f"--{name}-dir", str(path))]
    assert cli.main([*command, *flags]) == 1
    error = capsys.readouterr().err
    assert "file/folder cannot be written: Not a directory. Name another folder with" in error
    assert f"--{folder}-dir or QWEN_{folder.upper()}_DIR" in error
    assert error.count("\n") == 1


def test_all_addresses_get_the_same_port() -> None:
    sockets = listen(Settings(host=("127.0.0.1", "::1"), port=0))
    try:
        assert len({listener.getsockname()[1] for listener in sockets}) == 1
    finally:
        for listener in sockets:
            listener.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        listen(Settings(host=("192.0.2.1",), port=0))


def test_one_of_several_addresses_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    (listener,) = listen(Settings(host=("127.0.0.1", "192.0.2.1"), port=0))
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    assert (
        "cannot listen on 192.0.2.1, and goes on without this address: Cannot assign requested address" in caplog.text
    )


async def run_chat(*arguments: str, typed: bytes = b"") -> tuple[int, str, str]:
    done = await asyncio.to_thread(preloaded.run, "chat", *arguments, env=ENVIRONMENT, typed=typed)
    return done.returncode, done.stdout, done.stderr


def talking(reply: str = "Hello!") -> ScriptedEngine:
    engine = ScriptedEngine(reply)
    engine.gate.set()
    return engine


async def test_one_question_is_answered_by_a_running_service(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        assert await run_chat("--url", live.url, "Who", "are", "you?") == (0, "Hello!\n", "")
        assert live.engine.answered == ["Who are you?"]


async def test_lines_that_are_piped_in_are_one_conversation(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking("Yes.")) as live:
        code, output, _ = await run_chat(
            "--url", live.url, "--system", "Be brief.", typed=b"One?\n\n/clear\nTwo?\nThree?\n"
        )
        assert (code, output) == (0, "Yes.\n" * 3)
        last = live.engine.runtimes[0].prompts[-1].request.messages
        assert [message.content for message in last] == ["Be brief.", "Two?", "Yes.", "Three?"]


async def test_a_service_that_does_not_answer_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    code, output, errors = await run_chat("--url", f"http://127.0.0.1:{port}", "Hi")
    assert (code, output) == (1, "")
    assert re.fullmatch(rf"qwen-service: No chat server answers at http://127\.0\.0\.1:{port}: .+\n", errors)


async def test_an_error_of_the_service_is_told_and_the_exit_code_is_1(tmp_path: Path) -> None:
    async with live_service(tmp_path, talking()) as live:
        code, _, errors = await run_chat("--url", live.url, "--model", "nobody", "Hi")
        assert code == 1
        assert "There is no model 'nobody'" in errors


def test_a_talk_at_the_terminal_with_an_engine_of_its_own(smollm2: Path, tmp_path: Path) -> None:
    with terminal(
        "chat", "--local", "--max-tokens", "100", "--model-path", str(smollm2), "--state-dir", str(tmp_path)
    ) as talk:
        assert "smollm2" in talk.until("\n> ")
        children = Path(f"/proc/{talk.process.pid}/task/{talk.process.pid}/children")
        (worker,) = map(int, children.read_text().split())
        talk.type("Write a very long story about the sea.\n")
        talk.until("sea.\r\n")  # the terminal echoes what is typed
        talk.until(" ")
        talk.process.send_signal(signal.SIGINT)
        talk.until("(stopped)")
        talk.until("\n> ")
        talk.type("Say yes.\n")
        assert len(talk.until("\n> ")) > len("Say yes.\r\n")
        talk.type("\x04")
        assert talk.process.wait(60) == 0
        assert not is_alive(worker)


def test_a_talk_with_a_stopgap_begins_with_what_is_better(smollm2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models/smollm2-135m"
    folder.mkdir(parents=True)
    (folder / smollm2.name).symlink_to(smollm2)
    with terminal("chat", "--local", "--models-dir", str(folder.parent), "--state-dir", str(tmp_path)) as talk:
        assert "`qwen-service pull qwen2.5-0.5b-instruct` (491 MB)" in talk.until("\n> ")
        talk.type("\x04")
        assert talk.process.wait(60) == 0
