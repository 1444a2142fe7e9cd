"""AxApi over the simulator of main_api, with a look into the KV cache it plays."""

import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.runtime import Piece, Prefill, Prompt
from qwen_service.runtimes.axera.api import AxApi
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.tokenizer import LocalTokenizer
from tests.runtimes.simulators.test_simulator_main_api import free_port
from tests.waiting import until

SIMULATOR = Path(__file__).parents[1] / "qwen_service" / "simulators" / "main_api"


@dataclass
class Reply:
    text: str = ""
    ids: list[int] = field(default_factory=list)
    count: int = 0
    reason: str | None = None
    cached: int = -1

    def add(self, item: Prefill | Piece) -> None:
        if isinstance(item, Prefill):
            self.cached = item.cached_tokens
            return
        self.text += item.text
        self.ids += item.token_ids
        self.count += item.token_count
        self.reason = item.finish_reason


class SimulatedCard:
    """`with` nothing started yet: call runtime.start(). `log` is read from where the last look ended."""

    def __init__(
        self,
        folder: Path,
        tokenizer: LocalTokenizer,
        server: TokenizerServer,
        environment: Mapping[str, str],
        **timeouts: float,
    ) -> None:
        self.record = folder / "kv.jsonl"
        self.record.touch()
        self._read = 0
        for name in ("embed.bin", "post.axmodel", "l0.axmodel", "l1.axmodel", "l2.axmodel"):
            (folder / name).touch()
        source = SIMULATOR.read_text().partition("\n")[2]
        (folder / "main_api").write_text(f"#!{sys.executable}\n{source}")  # without a run bit, as it is fetched
        self.pid_file = folder / "main_api.pid"
        self.port = free_port()
        self.progress: list[str] = []
        program = AxeraProgram(
            command=self.command,
            folder=folder,
            env={**os.environ, "SIM_PORT": str(self.port), "SIM_RECORD": str(self.record), **environment},
            port=self.port,
            pid_file=self.pid_file,
            **timeouts,  # type: ignore[arg-type]  # mypy matches ** with every parameter
        )
        self.runtime = AxApi(program, tokenizer, server)

    def command(self, values: Mapping[str, str]) -> list[str]:
        flags = {
            "system_prompt": values["system_prompt"], "template_filename_axmodel": "l%d.axmodel", "axmodel_num": "3",
            "url_tokenizer_model": values["tokenizer_url"], "filename_post_axmodel": "post.axmodel",
            "filename_tokens_embed": "embed.bin", "tokens_embed_num": "151936", "tokens_embed_size": "2560",
            "use_mmap_load_embed": "1", "devices": "0",
        }  # fmt: skip
        return ["./main_api", *(part for key, value in flags.items() for part in (f"--{key}", value))]

    async def start(self) -> None:
        await self.runtime.start(self.progress.append)

    async def ask(self, ids: list[int], **sampling: Any) -> Reply:
        reply = Reply()
        async for item in self.runtime.generate(prompt(ids), Sampling(**sampling)):
            reply.add(item)
        return reply

    def events(self) -> list[dict[str, Any]]:
        """What has happened to the KV cache since the last call."""
        with self.record.open() as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return [json.loads(line) for line in lines]

    async def until(self, kind: str) -> None:
        """Return when something of this kind has happened to the KV cache since the program started."""
        await until(lambda: kind in (event for event, _ in self.whole_record()))

    def whole_record(self) -> Iterator[tuple[str, list[int]]]:
        return ((event["event"], event["kv"]) for event in map(json.loads, self.record.read_text().splitlines()))

    def seen(self) -> Iterator[tuple[str, list[int]]]:
        return ((event["event"], event["kv"]) for event in self.events())


def prompt(ids: list[int]) -> Prompt:
    return Prompt(tuple(ids), ChatRequest("r1"))


Card = Callable[..., AbstractAsyncContextManager[SimulatedCard]]


@asynccontextmanager
async def simulated_card(
    folder: Path,
    tokenizer: LocalTokenizer,
    *,
    stall_timeout: float = 20.0,
    start_timeout: float = 20.0,
    **environment: str,
) -> AsyncIterator[SimulatedCard]:
    server = TokenizerServer(tokenizer, port=0, log=logging.getLogger("tokenizer"))
    await server.start()
    timeouts = {"stall_timeout": stall_timeout, "start_timeout": start_timeout}
    card = SimulatedCard(folder, tokenizer, server, environment, **timeouts)
    try:
        yield card
        assert not [kind for kind, _ in card.whole_record() if kind == "corrupt"], "a corrupt KV cache was continued"
    finally:
        await card.runtime.stop()
        await server.stop()
