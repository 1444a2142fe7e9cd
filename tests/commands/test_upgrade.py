"""`qwen-service upgrade`: an index on this machine, and models that were installed by an older release."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from qwen_service import cli
from qwen_service.commands import upgrade
from qwen_service.models.record import RecordedFile, new_record

MANIFEST = """\
name: tiny
runtime: llamacpp
source: {repo: someone/tiny, revision: "%s"}
files: [{path: tiny.gguf}]
"""


class Index(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.versions = ["0.1.0", "0.2.0", "0.3.0rc1", "not a version"]
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.heard.append((self.path, dict(self.headers)))
        self.send_response(200 if self.path == "/simple/qwen-service/" else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"versions": self.server.versions}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what fails."""


@pytest.fixture
def index() -> Iterator[Index]:
    server = Index()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def install(folder: Path, revision: str, pinned: str) -> Path:
    (folder / "manifests").mkdir(parents=True)
    (folder / "manifests/tiny.yaml").write_text(MANIFEST % (pinned * 40))
    (folder / "tiny").mkdir()
    (folder / "tiny/tiny.gguf").write_bytes(b"GGUF")
    new_record("tiny", "someone/tiny", revision * 40, {"tiny.gguf": RecordedFile(4, "0" * 64)}).save(folder / "tiny")
    return folder


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is no checkout but release 0.1.0."""
    monkeypatch.setattr(upgrade, "version", lambda name: "0.1.0")


def check(index: Index, models: Path) -> int:
    return cli.main(["upgrade", "--check", "--index", index.url, "--models-dir", str(models)])


@pytest.mark.usefixtures("released")
def test_a_newer_release_and_a_newer_pin_are_told_and_nothing_is_changed(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(index, install(tmp_path / "models", "a", "b")) == 3
    told = capsys.readouterr().out
    assert "qwen-service: 0.2.0 is released, 0.1.0 is here." in told
    assert "tiny: aaaaaaaaaaaa is installed, bbbbbbbbbbbb is pinned" in told
    assert (tmp_path / "models/tiny/tiny.gguf").read_bytes() == b"GGUF"


@pytest.mark.usefixtures("released")
def test_nothing_newer_is_told_too(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.versions = ["0.1.0", "0.2.0rc1"]
    assert check(index, install(tmp_path / "models", "a", "a")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "models: each installed model has the pinned revision",
        "qwen-service: 0.1.0 is the newest release",
    ]


@pytest.mark.usefixtures("released")
def test_the_index_learns_nothing_of_this_machine(index: Index, tmp_path: Path) -> None:
    check(index, tmp_path / "models")
    ((path, headers),) = index.heard
    assert path == "/simple/qwen-service/"
    assert headers.pop("Host").startswith("127.0.0.1:")
    assert headers == {
        "Accept": "application/vnd.pypi.simple.v1+json",
        "Accept-Encoding": headers["Accept-Encoding"],  # what the client library can unpack
        "Connection": "keep-alive",
        "User-Agent": "qwen-service",
    }


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(("path", "why"), [("/nowhere", "HTTP 404.\n"), ("", "lists no release of qwen-service")])
def test_an_index_that_does_not_tell_is_one_line(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, why: str
) -> None:
    index.versions = []
    index.url += path
    assert check(index, tmp_path / "models") == 1
    error = capsys.readouterr().err
    assert error.startswith("qwen-service: ")
    assert f"{index.url}/qwen-service/ " in error
    assert why in error


def test_a_checkout_is_told_to_pull(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(index, tmp_path / "models") == 0
    assert "runs from a checkout; `git pull`" in capsys.readouterr().out
    assert index.heard == []
