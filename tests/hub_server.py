"""The hub's simulator as a process of its own, and repositories for it."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIMULATOR = Path(__file__).parent / "simulators/hub.py"


@dataclass(frozen=True, slots=True)
class HubServer:
    url: str

    def requests(self) -> list[dict[str, str | None]]:
        with urllib.request.urlopen(f"{self.url}/requests", timeout=10) as answer:
            requests: list[dict[str, str | None]] = json.load(answer)
            return requests

    def downloads_of(self, name: str) -> list[dict[str, str | None]]:
        return [r for r in self.requests() if str(r["path"]).startswith("/cdn/") and str(r["path"]).endswith(name)]


@contextmanager
def hub_server(root: Path, *flags: str) -> Iterator[HubServer]:
    argv = [sys.executable, "-I", str(SIMULATOR), str(root), *flags]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield HubServer(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.terminate()


def put(root: Path, repo: str, revision: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / repo / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
