"""qwen-service launch AGENT: start a coding agent with the model that is loaded and a prompt that fits its context.

Arguments after `--` are passed to the agent. The agent's own configuration is not changed.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from qwen_service.commands.agents import AGENTS, Agent, Start, Target
from qwen_service.commands.become import become
from qwen_service.commands.error_text import answer_text
from qwen_service.config import load_settings
from qwen_service.errors import ServiceError

REPLY_ROOM = 512  # tokens that a useful reply needs
LOADING = 900.0  # seconds that a model may take to be loaded


class LaunchFailed(ServiceError):
    """The agent cannot be started, or would not work."""


def add_launch_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "launch",
        help="start a coding agent with the model that is loaded",
        description=__doc__,
        usage="qwen-service launch [-h] [--url URL] [--api-key KEY] [--model NAME] [--print] AGENT [-- ARGUMENT ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("agent", choices=sorted(AGENTS), metavar="AGENT", help="codex, claude or opencode")
    parser.add_argument("--url", help="a running service (default: the one on this machine)")
    parser.add_argument("--api-key", default="none", metavar="KEY", help="key for the service, if it needs one")
    parser.add_argument("--model", metavar="NAME", help="use this model instead of the one that is loaded")
    parser.add_argument("--print", action="store_true", help="show environment and command instead of running them")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the service, for its port")
    parser.set_defaults(run=launch)


def launch(options: argparse.Namespace) -> int:
    """Replace this process by the agent; returns only when the command is just printed. Raises LaunchFailed."""
    agent = AGENTS[options.agent]
    program = shutil.which(agent.program)
    if program is None and not options.print:
        raise LaunchFailed(f"{agent.program} is not installed. Install it with: {agent.install}")
    target = _target(options, agent)
    demand_room(agent, target)
    start = agent.start(target)
    target.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if options.print or program is None:
        print(as_shell(agent, start, options.rest))
        return 0
    print(_told(agent, target), file=sys.stderr, flush=True)
    kept = {name: value for name, value in os.environ.items() if name not in start.unset}
    return become([program, *start.flags, *options.rest], {**kept, **start.environment})


def as_shell(agent: Agent, start: Start, rest: list[str]) -> str:
    """The same start as one line for a shell."""
    without = [part for name in start.unset for part in ("-u", name)]
    assignments = [f"{name}={value}" for name, value in start.environment.items()]
    return shlex.join(["env", *without, *assignments, agent.program, *start.flags, *rest])


def _target(options: argparse.Namespace, agent: Agent) -> Target:
    url = options.url or f"http://127.0.0.1:{load_settings({}, config_file=options.config).port}"
    url = url.rstrip("/").removesuffix("/v1")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    model = _loaded(url, options.api_key, options.model)
    if "tools" not in model.capabilities:
        raise LaunchFailed(f"{model.id} cannot call tools, which a coding agent needs. Serve another model.")
    home = state / "qwen-service" / agent.name
    return Target(url, model.id, model.context, model.prompt_limit or model.context, home, options.api_key)


@dataclass(frozen=True, slots=True)
class _Model:
    """A loaded model, as GET /v1/models describes it."""

    id: str
    context: int
    prompt_limit: int | None
    capabilities: Sequence[str]


def _loaded(url: str, api_key: str, name: str | None) -> _Model:
    """The model of that name, which is loaded if necessary; without a name, the loaded one."""
    headers = {"Authorization": f"Bearer {api_key}"}
    question = {"messages": [{"role": "user", "content": "Hi"}]} | ({"model": name} if name else {})
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=httpx2.Timeout(10, read=LOADING)) as client:
            counted = client.post("/v1/messages/count_tokens", json=question)  # answered once the model is loaded
            if counted.is_error:
                raise LaunchFailed(f"{url}: {answer_text(counted.content, counted.status_code)}")
            path = f"/v1/models/{name}" if name else "/v1/models"
            known = client.get(path).raise_for_status().json()
        entries = [known] if name else [entry for entry in known["data"] if entry["parent"] is None]
        models = [_model(entry) for entry in entries if entry["state"] == "loaded"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise LaunchFailed(f"No qwen-service answers at {url}: {error}. Start one with: qwen-service serve") from None
    if not models:
        raise LaunchFailed(f"The service at {url} has no loaded model. Name one with --model.")
    return models[0]


def _model(entry: dict[str, Any]) -> _Model:
    return _Model(str(entry["id"]), int(entry["context"]), entry["prompt_limit"], entry["capabilities"])


def demand_room(agent: Agent, target: Target) -> None:
    needed = agent.prompt_tokens + REPLY_ROOM
    if target.context < needed:
        raise LaunchFailed(
            f"{agent.name} needs a context of {needed} tokens ({agent.prompt_tokens} for its smallest prompt,"
            f" {REPLY_ROOM} for a reply), and {target.model} has one of {target.context}. Raise context_size, or serve"
            " another model."
        )
    if target.prompt_limit < agent.prompt_tokens:
        raise LaunchFailed(
            f"{agent.name}'s smallest prompt has {agent.prompt_tokens} tokens, and {target.model} takes at most"
            f" {target.prompt_limit}. Serve another model."
        )


def _told(agent: Agent, target: Target) -> str:
    return (
        f"{agent.name} with {target.model} at {target.url}, a context of {target.context} tokens\n"
        f"Turned off: {agent.turned_off}.\n{agent.settings.format(home=target.home)}"
    )
