"""Asks questions at a terminal, unless a flag has given the answer."""

import sys
from dataclasses import dataclass

from qwen_service.errors import ServiceError


class NoTerminal(ServiceError):
    """No flag has the answer to a question, and there is no terminal to ask at."""


def at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


@dataclass(frozen=True, slots=True)
class Questions:
    assume_yes: bool = False  # give the recommended answer to every question

    def confirm(self, question: str, *, default: bool = True) -> bool:
        if self.assume_yes:
            return default
        choices = "[Y/n]" if default else "[y/N]"
        while True:
            answer = self._ask(f"{question} {choices} ").lower()
            if answer in ("", "y", "yes", "n", "no"):
                return default if not answer else answer.startswith("y")
            print("Please answer y or n.")

    def choose(self, question: str, choices: list[str], default: int) -> int:
        """Index of the chosen line; by its number, counted from 1, or by its first word."""
        if self.assume_yes:
            return default
        names = [choice.split()[0].lower() for choice in choices]
        while True:
            answer = self._ask(f"{question} [{default + 1}] ").lower()
            if not answer:
                return default
            if answer.isdecimal() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            if answer in names:
                return names.index(answer)
            print(f"Please answer with a number from 1 to {len(choices)}.")

    def _ask(self, prompt: str) -> str:
        if not at_terminal():
            text = f"There is no terminal to ask at: {prompt.strip()}"
            raise NoTerminal(f"{text} Answer with a flag, or take the default with --yes.")
        try:
            return input(prompt).strip()
        except EOFError:
            raise KeyboardInterrupt from None  # Ctrl-D means the same as Ctrl-C
