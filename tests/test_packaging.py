"""What is installed beside the Python code: settings, units, scripts, workflow, compose file."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_service.cli import COMMANDS
from qwen_service.config import load_settings
from qwen_service.models.catalog import Catalog
from tests import ROOT

UNITS = {name: (ROOT / "systemd" / name).read_text() for name in ("qwen-chat.service", "qwen3-4b.service")}
SHELL = [*ROOT.glob("scripts/*.sh"), *ROOT.glob("packaging/*.sh"), *ROOT.glob("packaging/debian/p*"), ROOT / ".ci/run"]


def test_the_packaged_settings_are_valid_and_point_to_the_systems_folders() -> None:
    settings = load_settings(config_file=ROOT / "packaging/config.yaml")
    assert (settings.models_dir, settings.log_dir) == (Path("/var/lib/qwen/models"), Path("/var/log/qwen"))
    assert settings.host == ("127.0.0.1", "::1")


def test_the_units_differ_only_in_the_model_and_exclude_each_other() -> None:
    one, other = (text.splitlines() for text in UNITS.values())
    differing = {line.partition("=")[0] for line in set(one) ^ set(other) if not line.startswith("#")}
    assert differing == {"Description", "After", "Conflicts", "ExecStart"}
    assert "Conflicts=qwen3-4b.service" in one
    assert "Conflicts=qwen-chat.service" in other


def test_the_units_talk_to_this_machine_only_and_wait_for_ready() -> None:
    for text in UNITS.values():
        assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in text
        assert "Type=notify\n" in text


def test_the_model_of_the_second_unit_is_in_the_catalog(tmp_path: Path) -> None:
    (command,) = re.findall(r"ExecStart=\S+ (\S+)", UNITS["qwen3-4b.service"])
    assert Catalog.load(tmp_path).find(command).name == "qwen3-4b"


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) or script.parent.name == "debian" or script.name == "users.sh"


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [([], "serve"), (["qwen3-4b"], "serve --model qwen3-4b"), (["--port", "1"], "serve --port 1")],
)
def test_the_wrapper_passes_model_and_flags_on(tmp_path: Path, given: list[str], passed_on: str) -> None:
    python = tmp_path / "venv/bin/python"
    wrapper = tmp_path / "bin/start_service.sh"
    for path, text in ((python, '#!/bin/sh\necho "$@"\n'), (wrapper, (ROOT / "scripts/start_service.sh").read_text())):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    said = subprocess.run([str(wrapper), *given], check=True, capture_output=True, text=True).stdout
    assert said == f"-m qwen_service {passed_on}\n"


def test_the_wheels_of_the_package_are_pinned() -> None:
    lines = (ROOT / "packaging/requirements-venv.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if not line.startswith("#"))


def test_workflow_and_compose_file_call_what_exists() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in runs
    assert any(run.startswith("packaging/build_deb.sh") for run in runs)
    assert workflow["jobs"]["install"]["strategy"]["matrix"]["debian"] == ["12", "13"]
    compose = yaml.safe_load((ROOT / "packaging/docker/compose.yaml").read_text())
    assert (ROOT / compose["services"]["qwen"]["build"]["dockerfile"]).is_file()


def test_the_manual_page_tells_every_command_as_help_does() -> None:
    page = (ROOT / "packaging/qwen-service.1").read_text().replace("\\-", "-")
    assert re.findall(r"^\.TP\n\.B ([a-z-]+)\n(.+)$", page, re.MULTILINE) == [
        (name, text) for name, (_, text) in COMMANDS.items()
    ]


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    """The unpacked tarball, for a Python that no machine has in /usr/bin."""
    for name in ("install.sh", "users.sh"):
        shutil.copy(ROOT / "packaging" / name, tmp_path)
    (tmp_path / "opt/qwen/venv-python3.99").mkdir(parents=True)
    return tmp_path


def test_the_installer_refuses_before_it_changes_anything_where_its_python_is_missing(tarball: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the installer looks at nothing before it is root")
    done = subprocess.run([str(tarball / "install.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("install.sh: needs Debian's python3.99 in /usr/bin")


def test_a_release_builds_signs_and_publishes_everything_of_a_tag() -> None:
    workflow = _release()
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    steps = workflow["jobs"]["build"]["steps"]
    runs = "\n".join(step.get("run", "") for step in steps)
    for command in ("packaging/build_deb.sh amd64 arm64", "pipx run build", "sha256sum"):
        assert command in runs
    assert any("attest-build-provenance" in step.get("uses", "") for step in steps)
    (guard,) = [step["run"] for step in steps if step.get("run", "").startswith("grep")]
    version = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    for tag, code in ((f"v{version}", 0), ("v99.0", 1)):
        done = subprocess.run(["bash", "-c", guard], cwd=ROOT, env={"GITHUB_REF_NAME": tag}, check=False)
        assert done.returncode == code


def test_a_release_names_its_repository_in_the_metadata_and_the_readme(tmp_path: Path) -> None:
    """Nobody here knows the address; the workflow does."""
    for name in ("pyproject.toml", "README.md", "packaging/public_links.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    url = "https://forge.example/us/qwen-service"
    subprocess.run([str(tmp_path / "packaging/public_links.sh"), url, "v1.2"], check=True)
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Homepage"] == url
    assert all(address.startswith(url) for address in urls.values())
    readme = (tmp_path / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", readme) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", readme)
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith(f"{url}/")] == []
    for target in targets:
        assert (ROOT / target.removeprefix(f"{url}/blob/v1.2/").removeprefix(f"{url}/raw/v1.2/")).is_file()
    runs = [step.get("run", "") for step in _release()["jobs"]["build"]["steps"]]
    assert sum("packaging/public_links.sh" in run for run in runs) == 1


def _release() -> Any:
    return yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
