"""qwen-service COMMAND. Only the module of the command that was given is imported."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from qwen_service.errors import ServiceError

# command -> (its module in commands/, what --help says); the module adds it to the parser by add_MODULE_command
COMMANDS = {
    "setup": ("setup", "choose, install and try a model, step by step"),
    "serve": ("serve", "answer apps, and show a chat page at http://127.0.0.1:8080"),
    "chat": ("chat", "talk in the terminal"),
    "pull": ("pull", "download a model, verify it and install it"),
    "list": ("models", "list the installed models; --all: all there are"),
    "show": ("models", "tell everything about a model"),
    "verify": ("models", "compare the files of a model with their checksums"),
    "bench": ("bench", "measure a running service"),
    "rm": ("models", "remove a model from the disk"),
    "key": ("key", "make an API key, for a service that others can reach"),
    "launch": ("launch", "start a coding agent with the model that is loaded"),
    "build-engine": ("build_engine", "build llama.cpp for this processor: faster prompts on a CPU"),
    "cluster": ("cluster", "put many cards behind one address"),
    "upgrade": ("upgrade", "show what is newer, and update models"),
    "doctor": ("doctor", "look for what is wrong or slow, and tell the cure"),
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
    for name, (module, text) in COMMANDS.items():
        if COMMANDS.get(wanted or "", ("",))[0] != module:
            subparsers.add_parser(name, help=text, add_help=False)
        elif module not in added:
            added.add(module)
            getattr(import_module(f"qwen_service.commands.{module}"), f"add_{module}_command")(subparsers)
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
        # Python flushes stdout at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--` and those after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]
