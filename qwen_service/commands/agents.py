"""The coding agents that `qwen-service launch` starts: their programs, and the settings that make their prompts small.

By default their prompts have 7 000 to 12 000 tokens, mostly instructions and tools that a small model has no use
for. The sizes below were counted with Qwen3's tokenizer and template: Codex 0.171, Claude Code 2.1, opencode 1.18.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTRUCTIONS = Path(__file__).with_name("agent_instructions.md")
PROVIDER = "qwen-service"
KEY_VARIABLE = "QWEN_SERVICE_API_KEY"
# Below this many tokens of context, Claude Code and opencode must not make room themselves: the tokens that they keep
# free (13 000 tokens and more) leaves them nothing, and they refuse each second turn or summarize for ever. The service
# then drops the oldest turns (context_overflow).
ROOM_TO_COMPACT = 32_768
PATIENCE = 3_600_000  # milliseconds: a long prompt is read at 15 tokens a second on a slow card


@dataclass(frozen=True, slots=True)
class Target:
    """The service's URL without /v1, and the model. `home` is a folder for the agent.

    In tokens: `context` bounds prompt and reply together, `prompt_limit` bounds the prompt.
    """

    url: str
    model: str
    context: int
    prompt_limit: int
    home: Path
    api_key: str = "none"


@dataclass(frozen=True, slots=True)
class Start:
    """What to execute. `environment` is added to the user's own, without the names of `unset`."""

    flags: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """`prompt_tokens` is the smallest prompt with these settings; `install` a command that gets the program."""

    name: str
    program: str
    install: str
    prompt_tokens: int
    turned_off: str
    settings: str  # where the agent keeps its settings, and what happens to the user's own
    start: Callable[[Target], Start]


def _codex(target: Target) -> Start:
    provider = f"model_providers.{PROVIDER}"
    settings: dict[str, object] = {
        "model": target.model,
        "model_provider": PROVIDER,
        f"{provider}.name": PROVIDER,
        f"{provider}.base_url": f"{target.url}/v1",
        f"{provider}.wire_api": "responses",
        f"{provider}.env_key": KEY_VARIABLE,
        f"{provider}.stream_idle_timeout_ms": PATIENCE,
        "model_context_window": target.context,
        "model_auto_compact_token_limit": min(target.context * 3 // 4, target.prompt_limit),
        "tool_output_token_limit": _tool_output(target),
        "model_instructions_file": str(INSTRUCTIONS),
        "web_search": "disabled",
        "include_collaboration_mode_instructions": False,
        "include_environment_context": False,
        "include_permissions_instructions": False,
        "skills.include_instructions": False,
        "tools.experimental_request_user_input.enabled": False,
        "tui.auto_recap": False,
        "agents.enabled": False,
        "features.apps": False,
        "features.plugins": False,
        "features.goals": False,
        "features.image_generation": False,
        "features.view_image": False,
    }
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    return Start(tuple(flags), {"CODEX_HOME": str(target.home), KEY_VARIABLE: target.api_key})


def _claude(target: Target) -> Start:
    models = ("", "_DEFAULT_HAIKU", "_DEFAULT_SONNET", "_DEFAULT_OPUS", "_SMALL_FAST")
    environment = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.api_key,
        **{f"ANTHROPIC{kind}_MODEL": target.model for kind in models},
        "API_TIMEOUT_MS": str(PATIENCE),
        "BASH_MAX_OUTPUT_LENGTH": str(4 * _tool_output(target)),  # letters
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # differs in each request: the KV cache would hold nothing after it
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS": str(_tool_output(target)),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.context // 4),
        "CLAUDE_CONFIG_DIR": str(target.home),
    }
    if target.context >= ROOM_TO_COMPACT:
        names = ("CLAUDE_CODE_AUTO_COMPACT_WINDOW", "CLAUDE_CODE_MAX_CONTEXT_TOKENS")
        environment |= dict.fromkeys(names, str(target.context))
    return Start(("--bare", "--disable-slash-commands"), environment, unset=("ANTHROPIC_API_KEY",))


def _opencode(target: Target) -> Start:
    model = f"{PROVIDER}/{target.model}"
    limit = {"context": target.context, "output": target.context // 4}
    config = {
        "model": model,
        "small_model": model,
        "autoupdate": False,
        "share": "disabled",
        "lsp": False,
        "agent": {"title": {"disable": True}, "build": {"prompt": INSTRUCTIONS.read_text(encoding="utf-8")}},
        "tools": dict.fromkeys(("skill", "task", "todowrite", "webfetch", "glob", "grep"), False),
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": PROVIDER,
                "options": {"baseURL": f"{target.url}/v1", "apiKey": target.api_key, "timeout": PATIENCE},
                "models": {target.model: {"name": target.model, "limit": limit}},
            }
        },
    }
    names = ["AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "CLAUDE_CODE"]
    if target.context < ROOM_TO_COMPACT:
        names.append("AUTOCOMPACT")
    quiet = {f"OPENCODE_DISABLE_{name}": "1" for name in names}
    return Start((), {"OPENCODE_CONFIG_CONTENT": json.dumps(config), **quiet})


def _tool_output(target: Target) -> int:
    """Tokens of one tool result that the model is shown: several results must fit."""
    return max(256, target.context // 8)


AGENTS = {
    agent.name: agent
    for agent in (
        Agent(
            "codex",
            "codex",
            "npm install -g @openai/codex",
            1300,
            "its own long instructions, web search, images, skills, apps, plugins, goals, recaps, and agents of its own",
            "Codex keeps its settings and talks in {home}; those in ~/.codex are neither read nor changed.",
            _codex,
        ),
        Agent(
            "claude",
            "claude",
            "npm install -g @anthropic-ai/claude-code",
            1100,
            "hooks, plugins, skills, CLAUDE.md, most tools (Bash, Edit and Read are left), and calls to Anthropic",
            "Claude Code keeps its settings and talks in {home}; those in ~/.claude are neither read nor changed.",
            _claude,
        ),
        Agent(
            "opencode",
            "opencode",
            "npm install -g opencode-ai",
            2800,
            "its own long instructions, titles, language servers, and the tools skill, task, todowrite, webfetch, glob, grep",
            "opencode also reads your opencode.json, which is not changed; these settings win.",
            _opencode,
        ),
    )
}
