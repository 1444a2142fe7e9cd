"""A tokenizer server for tests of the vendor programs' simulators: answers by table, misbehaves on demand."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]


class ScriptedTokenizer(ThreadingHTTPServer):
    """`answers` are per route: (status, body), or None to close the connection without an answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[tuple[str, Body]] = []
        self.delay = 0.0
        self.held_decode = 0  # the number of the /decode whose answer waits for `release`
        self.release = threading.Event()
        self.answers: dict[str, tuple[int, Body] | None] = {
            "/get_uid": (200, {"uid": "u1"}),
            "/bos_id": (200, {"bos_id": -1}),
            "/eos_id": (200, {"eos_id": 9}),
            "/reset": (200, {"token_ids": [1, 2, 3]}),
            "/encode": (200, {"token_ids": [4, 5], "diff": [4, 5]}),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, route: str) -> list[Body]:
        return [body for called, body in self.calls if called == route]

    def answer(self, route: str, body: Body) -> tuple[int, Body] | None:
        self.calls.append((route, body))
        if route == "/decode":
            if len(self.bodies("/decode")) == self.held_decode:
                self.release.wait(10)
            return 200, {"text": "".join(f"<{token}>" for token in body["token_ids"])}
        return self.answers[route]


class Handler(BaseHTTPRequestHandler):
    server: ScriptedTokenizer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body: Body) -> None:
        answer = self.server.answer(urlsplit(self.path).path, body)
        if answer is None:
            return
        time.sleep(self.server.delay)  # how slow a real server would be
        data = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def scripted_tokenizer() -> Iterator[ScriptedTokenizer]:
    with ScriptedTokenizer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
