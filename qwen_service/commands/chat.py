"""qwen-service chat: talk in the terminal.

It uses a running service, or starts the engine itself. Ctrl-C stops the reply, Ctrl-D leaves. With a question as
argument, or with lines on a stdin that is no terminal, it answers and exits.
"""

import argparse
import asyncio
import sys
from contextlib import aclosing
from typing import Any

from rich.console import Console

from qwen_service.chat import Message, ReasoningDelta, TextDelta
from qwen_service.commands.settings import add_setting_flags, make_folders, settings_from
from qwen_service.commands.talk import LocalTalk, RemoteTalk, Talk, TalkFailed
from qwen_service.errors import ServiceError
from qwen_service.settings import Settings

HELP = "/clear forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops a reply."


def add_chat_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("chat", help="talk in the terminal", description=__doc__)
    parser.add_argument("question", nargs="*", help="answer this and exit")
    parser.add_argument("--url", help="a running service (default: the one on this machine, if it runs)")
    parser.add_argument("--api-key", help="key for --url")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--local", action="store_true", help="start the engine here even if a service runs")
    add_setting_flags(parser)
    parser.set_defaults(run=chat)


def chat(options: argparse.Namespace) -> int:
    settings = settings_from(options)
    with asyncio.Runner() as runner:
        conversation = Conversation(runner, Console(highlight=False), options.system)
        try:
            conversation.open(options, settings)
            if options.question:
                return conversation.ask(" ".join(options.question))
            return conversation.run()
        finally:
            conversation.close()


class Conversation:
    def __init__(self, runner: asyncio.Runner, console: Console, system: str | None) -> None:
        self._runner = runner
        self._console = console
        self._beginning = [Message("system", system)] if system else []
        self._messages = list(self._beginning)
        self._talk: Talk | None = None
        self._name = ""

    def open(self, options: argparse.Namespace, settings: Settings) -> None:
        self._talk, self._name = self._runner.run(self._connect(options, settings))

    def close(self) -> None:
        if self._talk is not None:
            self._runner.run(self._talk.close())

    def run(self) -> int:
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            self._console.print(f"[dim]{self._name} · {HELP}[/dim]")
            if self._talk is not None and self._talk.stopgap:
                self._console.print(f"{self._name}: {self._talk.stopgap}", markup=False, soft_wrap=True)
        status = 0
        while True:
            try:
                line = input("> " if at_terminal else "").strip()
            except EOFError:
                return status
            except KeyboardInterrupt:
                print()
                continue
            if line in ("/quit", "/exit", "/bye"):
                return status
            if line == "/clear":
                self._messages = list(self._beginning)
            elif line.startswith("/"):
                self._console.print(HELP, style="dim")
            elif line:
                status = self.ask(line)

    def ask(self, question: str) -> int:
        """Print the answer; returns 0, or 1 after an error. A reply that was stopped stays in the conversation as it is."""
        assert self._talk is not None
        self._messages.append(Message("user", question))
        answer: list[str] = []
        try:
            self._runner.run(self._print_reply(self._talk, answer))
        except KeyboardInterrupt:
            self._console.print(" [dim](stopped)[/dim]", end="")
        except ServiceError as error:
            self._messages.pop()
            print(f"\nqwen-service: {error.message}", file=sys.stderr)
            return 1
        print()
        self._messages.append(Message("assistant", "".join(answer)))
        return 0

    async def _connect(self, options: argparse.Namespace, settings: Settings) -> tuple[Talk, str]:
        if not options.local:
            url = options.url or f"http://127.0.0.1:{settings.port}"
            model = None if settings.model == "auto" else settings.model
            remote = RemoteTalk(url, api_key=options.api_key, model=model)
            try:
                return remote, await remote.open()
            except TalkFailed:
                await remote.close()
                if options.url:
                    raise
        make_folders(settings)
        local = LocalTalk(settings)
        with Console(stderr=True).status("loading the model ..."):
            try:
                return local, await local.open()
            except BaseException:
                await local.close()
                raise

    async def _print_reply(self, talk: Talk, answer: list[str]) -> None:
        thinking = False
        async with aclosing(talk.reply(self._messages)) as events:
            async for event in events:
                if isinstance(event, ReasoningDelta):
                    thinking = True
                    self._console.print(event.text, style="dim", end="", markup=False, soft_wrap=True)
                elif isinstance(event, TextDelta):
                    if thinking:
                        thinking = False
                        print("\n")
                    answer.append(event.text)
                    print(event.text, end="", flush=True)
