"""The real coding agents, as scripts/install_agents.sh installs them, started by `qwen-service launch`."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwen-service-agents"
PROGRAMS = Path(os.environ.get("QWEN_SERVICE_AGENTS", CACHE)) / "node_modules" / ".bin"
PATIENCE = 100.0  # seconds: ten times what they take to start, and more than twice for opencode


@dataclass(frozen=True)
class Coder:
    """An agent that runs without asking, and the tool by which it runs a command."""

    name: str
    flags: tuple[str, ...]
    tool: str
    argument: str
    resume: tuple[str, ...]  # flags that go on with the last talk
    more: dict[str, Any] = field(default_factory=dict)
    prompt_bytes: int = 6_000  # at most, tools and instructions


CODERS = [
    Coder(
        "codex",
        ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        "exec_command",
        "cmd",
        ("exec", "resume", "--last", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
    ),
    Coder(
        "claude",
        ("--dangerously-skip-permissions", "-p"),
        "Bash",
        "command",
        ("--dangerously-skip-permissions", "-c", "-p"),
        {"description": "Multiply"},
    ),
    Coder("opencode", ("run",), "bash", "command", ("run", "-c"), {"description": "Multiply"}, prompt_bytes=12_000),
]


def demand(coder: Coder) -> Coder:
    """Skips the test where the program is not installed."""
    if not (PROGRAMS / coder.name).exists():
        pytest.skip(f"{coder.name} is not there: scripts/install_agents.sh")
    return coder


def launched(
    coder: Coder, url: str, folder: Path, prompt: str, *, resume: bool = False, patience: float = PATIENCE
) -> str:
    """What the agent answers."""
    done = launch(coder, url, folder, prompt, resume=resume, patience=patience)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def launch(
    coder: Coder, url: str, folder: Path, prompt: str, *, resume: bool = False, patience: float = PATIENCE
) -> "subprocess.CompletedProcess[str]":
    home, work = folder / "home", folder / "work"
    home.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    environment = {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "IS_SANDBOX": "1",  # Claude Code asks for it where it may run as root
    }
    flags = coder.resume if resume else coder.flags
    command = [sys.executable, "-m", "qwen_service", "launch", coder.name, "--url", url, "--", *flags, prompt]
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    assert not any((home / name).exists() for name in (".codex", ".claude", ".claude.json"))
    return done
