"""The whole service on a machine with simulated cards: the vendor's programs are processes of their own."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from qwen_service.app import create_app
from qwen_service.config import load_settings
from qwen_service.models.machine import Machine
from tests.live_service import listening

SIMULATORS = Path(__file__).parent / "simulators"
PLAYED = Path(__file__).parents[1] / "qwen_service" / "simulators"  # what `serve --simulate` plays
PATIENCE = 60.0  # seconds: ten times what anything here takes
MIB = 1024  # KiB
FLAGS = {
    "system_prompt": "{system_prompt}", "template_filename_axmodel": "l%d.axmodel", "axmodel_num": "3",
    "url_tokenizer_model": "{tokenizer_url}", "filename_post_axmodel": "post.axmodel",
    "filename_tokens_embed": "embed.bin", "tokens_embed_num": "151936", "tokens_embed_size": "2560",
    "use_mmap_load_embed": "1", "devices": "{devices}", "port": "{port}",
}  # fmt: skip


@dataclass
class CardHost:
    """A machine of files with card models and, if wanted, a GGUF; `weather` tells axcl-smi what is true."""

    folder: Path
    tokenizer: Path
    ports: int = field(default_factory=lambda: free_ports(2))

    def __post_init__(self) -> None:
        (self.folder / "root" / "dev").mkdir(parents=True)
        (self.folder / "root" / "dev" / "axcl_host").touch()
        (self.models / "manifests").mkdir(parents=True)
        self.weather(cards=[{}, {}])

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def cards_file(self) -> Path:
        return self.folder / "cards.json"

    def weather(self, **state: Any) -> None:
        draft = self.cards_file.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self.cards_file)

    def install(self, name: str, *, without: tuple[str, ...] = (), **manifest: Any) -> Path:
        """A model for main_api, `without` flags that its build does not know. Returns its program."""
        folder = self.models / name
        (folder / "tokenizer").mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "tokenizer" / file).symlink_to((self.tokenizer / file).resolve())
        for file in ("embed.bin", "post.axmodel", "l0.axmodel", "l1.axmodel", "l2.axmodel"):
            (folder / file).touch()
        source = (PLAYED / "main_api").read_text().partition("\n")[2]
        (folder / "main_api").write_text(f"#!{sys.executable}\n{source}")
        arguments = [part for key, value in FLAGS.items() if key not in without for part in (f"--{key}", value)]
        content = {
            "name": name,
            "runtime": "ax_api",
            "files": [{"path": "embed.bin"}],
            "programs": {kind: {"candidates": ["main_api"]} for kind in ("ax650", "axcl_arm64", "axcl_x86_64")},
            "arguments": arguments,
            "tokenizer": "tokenizer",
            "thinking": False,
            **manifest,
        }
        (self.models / "manifests" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return folder / "main_api"

    def install_gguf(self, gguf: Path) -> None:
        shutil.copy(gguf, self.models / "cpu.gguf")

    def pid(self, device: int = 0) -> int | None:
        """Of the program on the card; None while there is none."""
        name = "ax_api.pid" if device == 0 else f"ax_api-{device}.pid"
        with suppress(OSError, ValueError):
            return int((self.folder / "state" / name).read_text().split()[0])
        return None

    def kill(self, device: int = 0) -> int:
        pid = self.pid(device)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid


@dataclass
class CardService:
    http: httpx.AsyncClient

    async def chat(self, *turns: str, **body: Any) -> httpx.Response:
        """`turns` of user and assistant, by turns."""
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
        return await self.http.post("/v1/chat/completions", json={"messages": messages, **body})

    async def health(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self.http.get("/health")).json()
        return document

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first /health that it holds for."""
        document: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition(document := await self.health()):  # noqa: ASYNC110  # only /health can tell
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"/health still says {json.dumps(document)}") from None
        return document

    async def until_status(self, status: str) -> dict[str, Any]:
        return await self.until(lambda health: health["status"] == status)


@asynccontextmanager
async def card_service(host: CardHost, **settings: Any) -> AsyncIterator[CardService]:
    """SIM_CARDS and what the simulators are to do stand in the environment already."""
    defaults: dict[str, Any] = {
        "models_dir": host.models,
        "state_dir": host.folder / "state",
        "axcl_smi": str(SIMULATORS / "axcl-smi"),
        "npu_poll_interval": 0.5,
        "tokenizer_port": 0,
        "runtime_port": host.ports,
        "log_format": "text",
    }
    loaded = load_settings(defaults | settings)
    app = create_app(loaded, machine=Machine(host.folder / "root", "x86_64"))
    async with listening(app, loaded) as (_, http):
        yield CardService(http)


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        try:
            for number in range(port, port + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
