"""`qwen-service launch` with programs that play the agents: they write down how they were started."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_service import cli
from qwen_service.commands.agents import AGENTS, INSTRUCTIONS, KEY_VARIABLE, Target
from qwen_service.commands.launch import LaunchFailed, demand_room
from tests import ROOT, preloaded
from tests.case_service import PLAIN_TEMPLATE, Script, scripted_service
from tests.clients.conftest import served

PLAYER = """\
#!{python}
import json, os, pathlib, sys
seen = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
pathlib.Path({note!r}).write_text(json.dumps(seen))
sys.exit(7)
"""
each_agent = pytest.mark.parametrize("agent", sorted(AGENTS))


@dataclass
class Stage:
    """A home, and a folder with programs named as the agents."""

    folder: Path
    url: str

    def environment(self, **more: str) -> dict[str, str]:
        bare = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder / "home")}
        return bare | {"PYTHONPATH": str(ROOT)} | more

    def launch(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """With its own URL last, unless the arguments have one."""
        url = [] if "--url" in arguments else ["--url", self.url]
        return preloaded.run("launch", *arguments, *url, env=self.environment(**more))

    def run(self, command: list[str], **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=self.environment(**more), capture_output=True, text=True, timeout=60, check=False
        )

    def seen(self) -> dict[str, Any]:
        note = self.folder / "note.json"
        found: dict[str, Any] = json.loads(note.read_text())
        note.unlink()
        return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(scripted_service(tmp_path_factory.mktemp("service"), Script(context=8192), {})) as url:
        yield url


@pytest.fixture
def stage(tmp_path: Path, url: str) -> Stage:
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    for name in AGENTS:
        program = tmp_path / "bin" / name
        program.write_text(PLAYER.format(python=sys.executable, note=str(tmp_path / "note.json")))
        program.chmod(0o755)
    return Stage(tmp_path, url)


@each_agent
def test_the_agent_gets_model_address_bounds_and_its_arguments(stage: Stage, agent: str) -> None:
    done = stage.launch(agent, "--url", f"{stage.url}/v1/", "--api-key", "k3y", "--", "--resume", "a b")
    assert done.returncode == 7  # the agent's own
    seen = stage.seen()
    assert seen["arguments"][-2:] == ["--resume", "a b"]
    told = json.dumps(seen)
    for text in ("tiny", stage.url, "2048" if agent == "claude" else "8192", "k3y"):
        assert text in told
    assert f"{agent} with tiny at {stage.url}, a context of 8192 tokens" in done.stderr
    assert f"Turned off: {AGENTS[agent].turned_off}." in done.stderr


@each_agent
def test_nothing_is_written_into_the_users_own_settings(stage: Stage, agent: str) -> None:
    stage.launch(agent)
    seen = stage.seen()["environment"]
    home = stage.folder / "home"
    assert [str(path.relative_to(home)) for path in home.rglob("*") if path.is_dir()] == [
        ".local",
        ".local/state",
        ".local/state/qwen-service",
        f".local/state/qwen-service/{agent}",
    ]
    assert [path for path in home.rglob("*") if path.is_file()] == []
    own = {"codex": "CODEX_HOME", "claude": "CLAUDE_CONFIG_DIR"}
    if agent in own:
        assert seen[own[agent]] == str(home / ".local/state/qwen-service" / agent)


@each_agent
def test_what_is_printed_does_the_same(stage: Stage, agent: str) -> None:
    printed = stage.launch(agent, "--print", ANTHROPIC_API_KEY="mine")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert not (stage.folder / "note.json").exists()
    stage.launch(agent, ANTHROPIC_API_KEY="mine")
    launched = stage.seen()
    assert stage.run(shlex.split(printed.stdout), ANTHROPIC_API_KEY="mine").returncode == 7
    by_shell = stage.seen()
    for seen in (launched, by_shell):
        seen["environment"].pop("LC_CTYPE", None)  # Python sets it where there is no locale
    assert by_shell == launched
    assert ("ANTHROPIC_API_KEY" in launched["environment"]) == (agent != "claude")


def test_codex_reads_short_instructions_and_the_key_from_its_environment(stage: Stage) -> None:
    stage.launch("codex")
    seen = stage.seen()
    assert f'model_instructions_file="{INSTRUCTIONS}"' in seen["arguments"]
    assert INSTRUCTIONS.stat().st_size < 1000
    assert seen["environment"][KEY_VARIABLE] == "none"


def test_opencode_is_told_the_real_context(stage: Stage) -> None:
    stage.launch("opencode")
    config = json.loads(stage.seen()["environment"]["OPENCODE_CONFIG_CONTENT"])
    assert config["provider"]["qwen-service"]["models"]["tiny"]["limit"] == {"context": 8192, "output": 2048}


@pytest.mark.parametrize(("context", "themselves"), [(8192, False), (65_536, True)])
def test_only_a_large_context_is_made_room_in_by_the_agents_themselves(
    tmp_path: Path, context: int, themselves: bool
) -> None:
    target = Target("http://localhost:8080", "tiny", context, context - 1, tmp_path)
    claude, opencode = (AGENTS[name].start(target).environment for name in ("claude", "opencode"))
    assert ("CLAUDE_CODE_AUTO_COMPACT_WINDOW" in claude) == themselves
    assert ("OPENCODE_DISABLE_AUTOCOMPACT" in opencode) != themselves


@each_agent
def test_a_program_that_is_not_installed_is_told_how_to_install(
    agent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["launch", agent]) == 1
    assert capsys.readouterr().err == (
        f"qwen-service: {agent} is not installed. Install it with: {AGENTS[agent].install}\n"
    )


def test_a_context_that_is_too_small_is_told_with_both_numbers(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served(scripted_service(tmp_path_factory.mktemp("small"), Script(context=600), {})) as url:
        done = stage.launch("claude", "--url", url)
    assert done.returncode == 1
    assert "claude needs a context of 1612 tokens" in done.stderr
    assert "tiny has one of 600" in done.stderr
    assert not (stage.folder / "note.json").exists()


def test_a_prompt_limit_that_is_too_small_is_told_with_both_numbers() -> None:
    target = Target("http://localhost:8080", "tiny", 2048, 1024, Path("/nowhere"))
    with pytest.raises(LaunchFailed, match=r"smallest prompt has 1300 tokens, and tiny takes at most 1024\."):
        demand_room(AGENTS["codex"], target)


def test_a_model_without_tools_is_told(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(context=8192, template=PLAIN_TEMPLATE)
    with served(scripted_service(tmp_path_factory.mktemp("plain"), script, {})) as url:
        assert cli.main(["launch", "codex", "--print", "--url", url]) == 1
    assert "tiny cannot call tools" in capsys.readouterr().err


def test_another_model_is_loaded_first_and_one_that_is_unknown_is_told(stage: Stage) -> None:
    unknown = stage.launch("claude", "--model", "nobody")
    assert unknown.returncode == 1
    assert "nobody" in unknown.stderr
    stage.launch("claude", "--model", "other")
    assert stage.seen()["environment"]["ANTHROPIC_MODEL"] == "other"
    stage.launch("claude", "--model", "tiny")
    assert stage.seen()["environment"]["ANTHROPIC_MODEL"] == "tiny"


def test_no_service_is_told_with_the_cure(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["launch", "codex", "--print", "--url", "http://127.0.0.1:9"]) == 1
    assert "Start one with: qwen-service serve" in capsys.readouterr().err
