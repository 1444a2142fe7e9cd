"""`pull NAME --from DIR`: makes a folder that is already there (a git clone, a USB stick) an installed model.

DIR is used in place when the model belongs there; otherwise by hard links on the same disk, symbolic links when asked
for, or copies. The model is verified like a download before it appears.
"""

import os
import shutil
from pathlib import Path

from qwen_service.errors import ChecksumMismatch, InstallError
from qwen_service.install.disk import disk_faults_told
from qwen_service.install.partial_file import sha256_of
from qwen_service.install.progress import ProgressSink, Tally
from qwen_service.install.staging import Staging
from qwen_service.models.installed import InstalledModel, is_lfs_pointer, pointer_advice
from qwen_service.models.record import FILE_NAME, RecordedFile, load_record, new_record
from qwen_service.models.spec import ModelSpec


def import_folder(
    spec: ModelSpec, folder: Path, models_dir: Path, sink: ProgressSink, *, link: bool = False
) -> InstalledModel:
    """Import the folder. Raises InstallError that names the fault of the folder or the disk."""
    with disk_faults_told(spec.name, models_dir):
        return _adopt(spec, folder, models_dir, sink, link=link)


def _adopt(spec: ModelSpec, folder: Path, models_dir: Path, sink: ProgressSink, *, link: bool) -> InstalledModel:
    given = InstalledModel(spec, folder.absolute())
    paths = _usable_files(given)
    sink.stage(f"Verifying {len(paths)} files in {folder} ...")
    recorded = _verified(given, paths, sink)
    record = new_record(spec.name, str(given.folder), "", recorded)
    programs = spec.programs_among(paths)
    if given.folder.resolve() == (models_dir / spec.name).resolve():
        for program in programs:
            (given.folder / program).chmod(0o755)
        record.save(given.folder)
    else:
        with Staging(models_dir, spec.name, "adopted") as staging:
            _bring(given.folder, staging, paths, set(programs), link=link)
            staging.install(record, programs)
    sink.stage(f"{spec.name}: verified and installed in {models_dir / spec.name}")
    return InstalledModel(spec, models_dir / spec.name)


def _usable_files(model: InstalledModel) -> list[str]:
    if not model.folder.is_dir():
        raise InstallError(f"{model.folder} is not a folder.")
    if pointers := model.lfs_pointers():
        raise InstallError(pointer_advice(pointers))
    if missing := model.missing_files():
        raise InstallError(
            f"{model.folder} is not {model.name}: {', '.join(missing[:5])} missing or of another size"
            + (f", and {len(missing) - 5} more" if len(missing) > 5 else "")
            + "."
        )
    return [path for path in _all_files(model.folder) if not is_lfs_pointer(model.folder / path)]


def _all_files(folder: Path) -> list[str]:
    relative = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in relative if path.parts[0] not in (".git", ".cache") and str(path) != FILE_NAME)


def _verified(model: InstalledModel, paths: list[str], sink: ProgressSink) -> dict[str, RecordedFile]:
    record = load_record(model.folder)
    expected = {name: file.sha256 for name, file in record.files.items()} if record else {}
    expected |= {file.path: file.sha256 for file in model.spec.files if file.sha256}
    tally = Tally(sink, "verifying", len(paths), sum((model.folder / path).stat().st_size for path in paths))
    found: dict[str, RecordedFile] = {}
    for path in paths:
        sha256 = sha256_of(model.folder / path, tally.add_bytes)
        if sha256 != expected.get(path, sha256):
            raise ChecksumMismatch(
                f"{model.folder / path} is not the published file: sha256 {sha256}, expected {expected[path]}."
            )
        found[path] = RecordedFile((model.folder / path).stat().st_size, sha256)
        tally.add_file()
    return found


def _bring(source: Path, staging: Staging, paths: list[str], programs: set[str], *, link: bool) -> None:
    same_disk = source.stat().st_dev == staging.folder.stat().st_dev
    if not same_disk and not link:
        staging.need_space(sum((source / path).stat().st_size for path in paths))
    for path in paths:
        target = staging.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if path in programs:  # a program needs a run bit, which the file system of the other disk may not have
            shutil.copyfile(source / path, target)
        elif link:
            target.symlink_to((source / path).resolve())
        elif same_disk:
            os.link((source / path).resolve(), target)
        else:
            shutil.copyfile(source / path, target)
