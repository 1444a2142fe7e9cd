"""qwen-service COMMAND. Only the module of the command that was given is imported."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from qwen_service.errors import ServiceError

# command -> (module, function that adds it to the parser, what --help says)
COMMANDS = {
    "setup": ("qwen_service.commands.setup", "add_setup_command", "choose, install and try a model, step by step"),
    "serve": (
        "qwen_service.commands.serve",
        "add_serve_command",
        "answer apps, and show a chat page at http://127.0.0.1:8080",
    ),
    "chat": ("qwen_service.commands.chat", "add_chat_command", "talk in the terminal"),
    "pull": ("qwen_service.commands.pull", "add_pull_command", "download a model, verify it and install it"),
    "list": ("qwen_service.commands.models", "add_model_commands", "list the installed models; --all: all there are"),
    "show": ("qwen_service.commands.models", "add_model_commands", "tell everything about a model"),
    "verify": (
        "qwen_service.commands.models",
        "add_model_commands",
        "compare the files of a model with their checksums",
    ),
    "bench": ("qwen_service.commands.bench", "add_bench_command", "measure a running service"),
    "rm": ("qwen_service.commands.models", "add_model_commands", "remove a model from the disk"),
    "key": ("qwen_service.commands.key", "add_key_command", "make an API key, for a service that others can reach"),
    "launch": (
        "qwen_service.commands.launch",
        "add_launch_command",
        "start a coding agent with the model that is loaded",
    ),
    "build-engine": (
        "qwen_service.commands.build_engine",
        "add_build_engine_command",
        "build llama.cpp for this processor: faster prompts on a CPU",
    ),
    "cluster": ("qwen_service.commands.cluster", "add_cluster_command", "put many cards behind one address"),
    "upgrade": ("qwen_service.commands.upgrade", "add_upgrade_command", "tell what is newer, and renew models"),
    "doctor": (
        "qwen_service.commands.doctor",
        "add_doctor_command",
        "look for what is wrong or slow, and tell the cure",
    ),
}

ABOUT = "A chat server for Axera cards and the CPU, for every app that speaks the OpenAI, Ollama or Anthropic API."
NEXT = (
    "New here: `qwen-service setup`. Something is wrong: `qwen-service doctor`."
    " All about a command: `qwen-service COMMAND --help`."
)
FORWARDING = ("launch",)  # commands that start another program; the arguments after `--` are passed to it


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="qwen-service", description=ABOUT, epilog=NEXT)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    arguments, rest = _split(arguments) if wanted in FORWARDING else (arguments, [])
    added: set[str] = set()
    for name, (module, function, text) in COMMANDS.items():
        if COMMANDS.get(wanted or "", ("",))[0] != module:
            subparsers.add_parser(name, help=text, add_help=False)
        elif module not in added:
            added.add(module)
            getattr(import_module(module), function)(subparsers)
    options = parser.parse_args(arguments)
    options.rest = rest
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except ServiceError as error:
        print(f"qwen-service: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `qwen-service list | head`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python flushes stdout at exit; it must not fail again
        return 141


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--` and those after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]
