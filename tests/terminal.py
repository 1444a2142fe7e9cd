"""A program of ours at a terminal."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests import ROOT
from tests.preloaded import Started, start

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("QWEN_")}


class Terminal:
    """A program that believes to be at a terminal. `script`: instead of qwen-service itself."""

    def __init__(self, *arguments: str, script: str = "") -> None:
        self._ours, its = pty.openpty()
        environment = {**ENVIRONMENT, "TERM": "dumb", "COLUMNS": "200"}
        self.process: subprocess.Popen[bytes] | Started
        if script:
            command = [sys.executable, "-c", script, *arguments]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
            )
        else:
            self.process = start(*arguments, files=[its] * 3, env=environment, new_session=True)
        os.close(its)
        self.shown = ""

    def until(self, text: str) -> str:
        """Read until `text` is shown; returns what came before it."""
        while text not in self.shown:
            try:
                new = os.read(self._ours, 4096)
            except OSError:  # the other end is closed
                new = b""
            assert new, f"{text!r} was never shown: {self.shown}"
            self.shown += new.decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, pressed again where the first fell between two calls, until the program has ended."""
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*arguments: str, script: str = "") -> Iterator[Terminal]:
    made = Terminal(*arguments, script=script)
    try:
        yield made
    finally:
        made.close()
