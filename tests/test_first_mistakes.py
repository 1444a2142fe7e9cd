"""The first ten mistakes: each is answered with what to do next, in one line."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import httpx
import pytest

from qwen_service import cli
from qwen_service.api.keys import new_key
from qwen_service.engines.choice import ModelChoice
from qwen_service.errors import Unavailable, UnknownModel
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from tests import ROOT
from tests.live_service import ScriptedEngine, live_service
from tests.serving import settings_with_models

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


async def asked(tmp_path: Path, path: str, headers: dict[str, str] | None = None, **settings: object) -> str:
    """The message of the error that a question to `path` gets."""
    async with live_service(tmp_path, ScriptedEngine(), **settings) as live, httpx.AsyncClient() as client:
        answer = await client.post(live.url + path, json=HELLO | {"model": "gpt-4o"}, headers=headers)
        message: str = answer.json()["error"]["message"]
        return message


def test_1_a_port_that_another_program_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--port", str(port), "--host", "127.0.0.1", "--state-dir", str(tmp_path)]
        assert cli.main(["serve", *flags]) == 1
    told = capsys.readouterr().err
    assert re.search(
        rf"Another program has port {port} \(.+ \(pid \d+\)\): stop it, or choose another port with --port\.\n$", told
    )


def test_2_no_model(tmp_path: Path) -> None:
    settings = settings_with_models(tmp_path)
    with pytest.raises(Unavailable, match=r"no model that chats is installed in .+ `qwen-service setup` chooses one"):
        ModelChoice(settings, Catalog.load(settings.models_dir), Machine(tmp_path)).first()


def test_3_no_card(tmp_path: Path) -> None:
    settings = settings_with_models(tmp_path, accelerator="required")
    with pytest.raises(Unavailable, match=r"no Axera card or its driver is not loaded .+ see `qwen-service doctor`"):
        ModelChoice(settings, Catalog.load(settings.models_dir), Machine(tmp_path)).first()


def test_4_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert cli.main(["pull", "smollm2-135m", "--models-dir", str(tmp_path)]) == 1
    assert "Make room, or set models_dir to a folder on another disk." in capsys.readouterr().err


def test_5_an_old_python(tmp_path: Path) -> None:
    main = (ROOT / "qwen_service/__main__.py").read_text()
    old = tmp_path / "old.py"
    old.write_text(f"import sys\nsys.version_info = (3, 9, 2)\nsys.version = '3.9.2 (old)'\n{main}")
    done = subprocess.run([sys.executable, str(old)], capture_output=True, text=True, check=False)
    assert done.stderr == "qwen-service needs Python 3.11 or newer, this is 3.9.2. Debian 12 and 13 have it.\n"


async def test_6_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(new_key("me")[1] + "\n")
    keys.chmod(0o600)
    message = await asked(tmp_path, "/v1/chat/completions", api_keys_file=keys)
    assert "send `Authorization: Bearer KEY`" in message
    assert "`qwen-service key NAME` on its machine makes one." in message


async def test_7_another_machine_by_its_name(tmp_path: Path) -> None:
    message = await asked(tmp_path, "/v1/chat/completions", {"Host": "pi.local:8080"})
    assert "`allowed_hosts: pi.local` in config.yaml" in message


async def test_8_a_web_page_of_somewhere_else(tmp_path: Path) -> None:
    message = await asked(tmp_path, "/v1/chat/completions", {"Origin": "https://app.example"})
    assert "`cors_origins: 'https://app.example'` in config.yaml" in message


@pytest.mark.parametrize(
    ("path", "cure"),
    [("/chat/completions", "Add /v1 to the end"), ("/v1/v1/chat/completions", "Take /v1 from the end")],
)
async def test_9_a_wrong_base_url(tmp_path: Path, path: str, cure: str) -> None:
    assert cure in await asked(tmp_path, path)


async def test_10_a_model_that_is_not_here(tmp_path: Path) -> None:
    message = await asked(tmp_path, "/v1/chat/completions")
    assert message.startswith("There is no model 'gpt-4o'. Models here: ")
    assert "`model_aliases` gives an installed model that name." in message


def test_10_a_model_that_is_known_but_not_installed(tmp_path: Path) -> None:
    catalog = Catalog.load(tmp_path)
    with pytest.raises(UnknownModel, match=r"qwen3 is not installed\. `qwen-service pull qwen3-4b` installs it\."):
        catalog.find_installed("qwen3")
    with pytest.raises(
        UnknownModel, match=r"There is no model 'qwen2\.5-05b-instruct'\. Did you mean qwen2\.5-0\.5b-instruct\?"
    ):
        catalog.find("qwen2.5-05b-instruct")


async def test_a_base_url_with_v1_is_understood_by_chat(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.gate.set()
    async with live_service(tmp_path, engine) as live:
        command = [sys.executable, "-m", "qwen_service", "chat", "--url", f"{live.url}/v1/", "Hi"]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        output, _ = await asyncio.wait_for(process.communicate(), 90)
    assert output == b"Hello!\n"
