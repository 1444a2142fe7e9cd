"""The HTTP tokenizer server that the vendor's programs call, and through which we drive them.

It has its own thread and loop, because the programs wait one second for an answer and then crash.
If the loop fails, it is started again on the same listening socket; channels and uids survive that.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Sequence

import uvloop

from qwen_service.errors import StartFailed
from qwen_service.runtimes.axera.channel import TokenChannel
from qwen_service.runtimes.axera.tokenizer_http import Connection
from qwen_service.runtimes.axera.tokenizer_routes import RenderPrompt, TokenizerRoutes
from qwen_service.text.tokenizer import LocalTokenizer

HOST = "127.0.0.1"
BACKLOG = 128
START_TIMEOUT = 5.0  # seconds
STOP_TIMEOUT = 2.0
RESTART_PAUSE = 0.05  # seconds, well below the one second of the clients
LONGEST_HOLD = 5.0  # seconds that an answer may be held for a stop; clients of the uid dialect wait 10 s


class TokenizerServer:
    """The server, used from the main loop. Programs of the uid dialect may share one; each of the plain dialect needs its own."""

    def __init__(
        self,
        tokenizer: LocalTokenizer,
        *,
        port: int = 12345,
        log: logging.Logger,
        render: RenderPrompt | None = None,
    ) -> None:
        self._routes = TokenizerRoutes(tokenizer, log, render)
        self._address = (HOST, port)
        self._log = log
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self.restarts = 0

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def port(self) -> int:
        """The real port, also when port 0 was asked for."""
        return int(self._socket.getsockname()[1]) if self._socket else self._address[1]

    @property
    def open_prompts(self) -> int:
        return self._routes.open_prompts

    @property
    def url(self) -> str:
        """The URL for the program's command line, without a trailing slash, which would crash the program."""
        return f"http://{HOST}:{self.port}"

    @property
    def foreign_calls(self) -> int:
        """Grows when a program gets a prompt that was not registered here, so somebody else uses it."""
        return self._routes.foreign_calls

    def prompt(
        self, token_ids: Sequence[int], diff: Sequence[int] | None = None, *, longest_hold: float = LONGEST_HOLD
    ) -> TokenChannel:
        """Register a generation. `diff`: the ids to prefill after those in the program's KV cache (uid dialect).

        `longest_hold`: seconds for which the channel's gate may hold an answer.
        """
        return self._routes.open_prompt(
            tuple(token_ids), tuple(token_ids if diff is None else diff), longest_hold=longest_hold
        )

    def reset(self, token_ids: Sequence[int]) -> TokenChannel:
        """Register the ids of a system prompt. Send the channel's key as the program's `system_prompt`."""
        return self._routes.open_reset(tuple(token_ids))

    async def start(self) -> None:
        """Start, and return when it answers. Raises StartFailed(permanent=True) when the port is taken."""
        self._socket = self._bind()
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)
        self._thread.start()
        if not await asyncio.to_thread(self._ready.wait, START_TIMEOUT):
            await self.stop()
            raise StartFailed(f"The tokenizer server did not come up within {START_TIMEOUT:.0f} s.")
        self._log.info("the tokenizer listens on %s", self.url)

    async def stop(self) -> None:
        self._stopping.set()
        if self._loop is not None and self._ready.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._end.set)
        if self._thread is not None:
            # A daemon thread: if it hangs, it ends with the process.
            await asyncio.to_thread(self._thread.join, STOP_TIMEOUT)
            self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            _, port = self._address
            raise StartFailed(
                f"The tokenizer server cannot listen on {HOST}:{port}: {error.strerror}. Stop the other program there"
                f" (the vendor's own tokenizer script, perhaps; `ss -ltnp sport = :{port}` names it), or set another"
                " tokenizer_port.",
                permanent=True,
            ) from error
        return listener

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(self._serve())
            except Exception:  # whatever the fault: without an answer a program would crash
                if not self._stopping.wait(RESTART_PAUSE):
                    self.restarts += 1
                    self._log.exception("the tokenizer's loop failed and is started again")

    async def _serve(self) -> None:
        assert self._socket is not None
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        connections: set[Connection] = set()
        server = await self._loop.create_server(
            lambda: Connection(self._routes.answer, connections), sock=self._socket.dup(), backlog=BACKLOG
        )
        try:
            self._ready.set()
            if not self._stopping.is_set():  # otherwise stop() came before this loop existed
                await self._end.wait()
        finally:
            self._ready.clear()
            server.close()
            for connection in connections:
                connection.abort()
            await server.wait_closed()
