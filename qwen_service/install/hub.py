"""A model repository on the Hugging Face hub or a mirror of it (HF_ENDPOINT; HF_TOKEN is sent to it, never shown).

huggingface_hub lists and explains; the bytes are read here: its own download begins a cut file anew
(docs/architecture.md has the measurement).
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from qwen_service.errors import DownloadFailed
from qwen_service.install.disk import is_disk_fault
from qwen_service.install.partial_file import PartialFile

COMMITS_LOOKED_AT = 50
TIMEOUT = 20  # seconds without a byte
FAILURES_IN_A_ROW = 5  # without a byte between them
PAUSE = 1.0  # seconds before a new connection after a cut one
LONGEST_PAUSE = 60.0  # seconds; the longest pause when the hub asks for one

# GatedRepoError is a subclass of RepositoryNotFoundError, so the order counts.
_REASONS: tuple[tuple[type[HfHubHTTPError], str], ...] = (
    (GatedRepoError, "wants a consent on the repository's page, and a token in HF_TOKEN."),
    (RevisionNotFoundError, "does not have this revision."),
    (RepositoryNotFoundError, "has no such repository, or shows it only with a token in HF_TOKEN."),
    (RemoteEntryNotFoundError, "does not have it."),
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of the repository. `sha256` for files in LFS; the others are small and are checked by their git blob id."""

    path: str
    size: int
    blob_id: str
    sha256: str | None

    def matches(self, path: Path, sha256: str) -> bool:
        if self.sha256 is not None:
            return sha256 == self.sha256
        content = path.read_bytes()
        git_blob = b"blob %d\0" % len(content) + content
        return hashlib.sha1(git_blob, usedforsecurity=False).hexdigest() == self.blob_id


class Hub:
    def __init__(self, repo: str) -> None:
        self.repo = repo
        self._api = HfApi()

    @property
    def endpoint(self) -> str:
        return self._api.endpoint

    def files(self, revision: str) -> dict[str, HubFile]:
        with self._explained(f"the list of files at {revision[:12]}"):
            tree = list(self._api.list_repo_tree(self.repo, recursive=True, revision=revision))
        entries = (entry for entry in tree if isinstance(entry, RepoFile))
        return {e.path: HubFile(e.path, e.size, e.blob_id, e.lfs.sha256 if e.lfs else None) for e in entries}

    def newest_with(self, needed: Collection[str], one_of: Collection[str]) -> str:
        """Find the newest commit that has all `needed` files and, unless `one_of` is empty, at least one of those."""
        with self._explained("the history"):
            commits = [commit.commit_id for commit in self._api.list_repo_commits(self.repo)]
        for commit in commits[:COMMITS_LOOKED_AT]:
            paths = self.files(commit).keys()
            if paths >= set(needed) and (not one_of or paths & set(one_of)):
                return commit
        raise DownloadFailed(
            f"None of the last {min(len(commits), COMMITS_LOOKED_AT)} commits of {self.repo} on {self.endpoint} has all"
            f" {len(needed)} files of this model and a program for this machine ({', '.join(one_of) or 'none needed'})."
            " To install a folder from elsewhere: qwen-service pull NAME --from DIR"
        )

    def read(self, revision: str, file: HubFile) -> bytes:
        """Read a small file. Raises DownloadFailed when it does not match the published checksum."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            with PartialFile(path.with_suffix(".part")) as partial:
                self.fetch(revision, file, partial, time.sleep)
                if not file.matches(partial.path, partial.sha256):
                    raise DownloadFailed(f"{self.repo}: {file.path} is not the published file. Try again.")
                partial.finish(path)
            return path.read_bytes()

    def fetch(self, revision: str, file: HubFile, target: PartialFile, pause: Callable[[float], object]) -> None:
        """Download, continuing after the bytes in `target`. Resumes cut connections and waits after a 429, a few times."""
        if target.tell() > file.size:
            target.start_over()
        url = hf_hub_url(self.repo, file.path, revision=revision, endpoint=self.endpoint)
        failures = 0
        with self._explained(file.path):
            while target.tell() < file.size:
                before = target.tell()
                try:
                    self._read_on(url, target)
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    failures = 0 if target.tell() > before else failures + 1
                    if failures > FAILURES_IN_A_ROW or not _may_pass(error):
                        raise
                    pause(_pause_after(error))

    def _read_on(self, url: str, target: PartialFile) -> None:
        headers = {"Accept-Encoding": "identity"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        if target.tell() > 0:
            headers["Range"] = f"bytes={target.tell()}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                target.start_over()
            for block in response.iter_bytes():
                target.write(block)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Explain an error of the hub in our words: its own contain signed URLs and HTML."""
        try:
            yield
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            if isinstance(error, OSError) and is_disk_fault(error):
                raise
            raise DownloadFailed(f"{self.repo}: {what}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        if isinstance(error, HfHubHTTPError):
            known = (text for kind, text in _REASONS if isinstance(error, kind))
            answered = f"answered {error.response.status_code}. Try again later; what is here is kept."
            return f"{self.endpoint} {next(known, answered)}"
        if isinstance(error, httpx2.HTTPError):
            return f"no connection to {self.endpoint} ({type(error).__name__}). Try again; what is here is kept."
        return f"{getattr(error, 'strerror', None) or error}. Try again; what is here is kept."


def _may_pass(error: Exception) -> bool:
    """Whether the error may pass: a broken connection, too many requests, a hub that is being restarted."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in (408, 429, 500, 502, 503, 504)


def _pause_after(error: Exception) -> float:
    """The pause that the hub asks for, at most a minute."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else PAUSE
