#!/usr/bin/env python3
"""Plays the Hugging Face hub: repositories in a folder, their history, redirects to a CDN, ranges, and faults by flag.

    hub.py ROOT [--cut-after BYTES --cuts N] [--wrong-bytes PATH] [--no-ranges] [--rate-limit N] [--down N] [--token T]

ROOT/owner/name/COMMIT/... are the files of one commit; commits are listed newest first by the folder's time.
Files named *.axmodel, *.bin, *.gguf, main_* are in LFS. The port is printed as the first line. Every request is
kept and given out by GET /requests as JSON: [{"method", "path", "range", "authorization"}].
"""

import argparse
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS = re.compile(r".*\.(axmodel|bin|gguf)|main_.*")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.options = options
        self.requests: list[dict[str, str | None]] = []
        self.lock = threading.Lock()
        self.cuts_left: int = options.cuts
        self.refusals_left: int = options.rate_limit
        self.faults_left: int = options.down

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is nothing to report."""

    def take(self, counter: str) -> bool:
        with self.lock:
            left: int = getattr(self, counter)
            setattr(self, counter, max(0, left - 1))
            return left > 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/requests":
            return self.send_json(self.server.requests)
        self.server.requests.append(
            {
                "method": self.command,
                "path": path,
                "range": self.headers.get("Range"),
                "authorization": self.headers.get("Authorization"),
            }
        )
        token = self.server.options.token
        if token and not path.startswith("/cdn/") and self.headers.get("Authorization") != f"Bearer {token}":
            return self.fail(401, "RepoNotFound", "Invalid username or password.")
        if self.server.take("refusals_left"):
            return self.fail(429, "TooManyRequests", "slow down", {"Retry-After": "0"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(tree|commits)/([^/]+)", path):
            return self.send_listing(*match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)", path):
            return self.redirect(*match.groups())
        if path.startswith("/cdn/"):
            if self.server.take("faults_left"):
                return self.fail(503, "", "", {"Retry-After": "0"})
            return self.send_file(self.server.options.root / path.removeprefix("/cdn/"))
        return self.fail(404, "EntryNotFound", "Not Found")

    def send_listing(self, repo: str, kind: str, revision: str) -> None:
        folder = self.server.options.root / repo
        if not folder.is_dir():
            return self.fail(404, "RepoNotFound", "Repository not found")
        if kind == "commits":
            commits = sorted(folder.iterdir(), key=lambda commit: commit.stat().st_mtime, reverse=True)
            entry = {"title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            return self.send_json([{"id": commit.name, **entry} for commit in commits])
        if not (folder / revision).is_dir():
            return self.fail(404, "RevisionNotFound", "Invalid rev id")
        files = sorted(path for path in (folder / revision).rglob("*") if path.is_file())
        return self.send_json([describe(path, folder / revision) for path in files])

    def redirect(self, repo: str, revision: str, name: str) -> None:
        path = self.server.options.root / repo / revision / name
        if path.is_file():
            self.send_response(302)
            cdn = f"http://localhost:{self.server.server_port}/cdn"  # another host, as the hub's CDN is
            self.send_header("Location", f"{cdn}/{repo}/{revision}/{name}?signature=secret")
            self.send_header("X-Repo-Commit", revision)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.fail(404, "EntryNotFound", "Entry not found")

    def send_file(self, path: Path) -> None:
        content = path.read_bytes()
        if self.server.options.wrong_bytes and str(path).endswith(self.server.options.wrong_bytes):
            content = bytes(byte ^ 0xFF for byte in content)
        start, status = 0, 200
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if span and not self.server.options.no_ranges:
            start, status = int(span[1]), 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.send_body(content[start:])

    def send_body(self, body: bytes) -> None:
        if (most := self.server.options.hang_after) is not None and len(body) > most:
            self.wfile.write(body[:most])
            threading.Event().wait()
        limit: int | None = self.server.options.cut_after
        if limit is not None and len(body) > limit and self.server.take("cuts_left"):
            self.wfile.write(body[:limit])
            self.close_connection = True
            return
        self.wfile.write(body)

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def describe(path: Path, folder: Path) -> dict[str, object]:
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {
        "type": "file",
        "path": str(path.relative_to(folder)),
        "size": len(content),
        "oid": blob,
    }
    if LFS.fullmatch(path.name):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--cut-after", type=int, help="end the connection after so many bytes of a file")
    parser.add_argument("--hang-after", type=int, help="send so many bytes of a file, then nothing more")
    parser.add_argument("--cuts", type=int, default=0, help="how often")
    parser.add_argument("--wrong-bytes", help="serve this file with other bytes")
    parser.add_argument("--no-ranges", action="store_true", help="ignore Range")
    parser.add_argument("--rate-limit", type=int, default=0, help="answer the first N requests with 429")
    parser.add_argument("--down", type=int, default=0, help="answer the first N requests for a file with 503")
    parser.add_argument("--token", help="answer 401 without this token")
    hub = Hub(parser.parse_args())
    print(hub.server_address[1], flush=True)
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
