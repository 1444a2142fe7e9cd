"""AxRepl over the simulator of main_axcl, in a model folder of the real shape."""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_service.chat import ChatRequest, Sampling
from qwen_service.runtime import Piece, Prompt
from qwen_service.runtimes.axera.repl import AxRepl
from qwen_service.runtimes.axera.repl_process import ReplProgram
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.tokenizer import LocalTokenizer

SIMULATOR = Path(__file__).parents[1] / "qwen_service" / "simulators" / "main_axcl"


@dataclass
class Rig:
    """Makes runtimes; all are stopped at its end."""

    folder: Path
    tokenizer: LocalTokenizer
    server: TokenizerServer
    made: list[AxRepl] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)

    @property
    def pid_file(self) -> Path:
        return self.folder / "model.pid"

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def make(self, *, options: Mapping[str, Any] | None = None, without: str = "", **env: str) -> AxRepl:
        """`options` of ReplProgram, `without` a flag, `env` of the simulator."""

        def command(values: Mapping[str, str]) -> list[str]:
            flags = {
                "template_filename_axmodel": "l%d.axmodel", "axmodel_num": "2", "tokenizer_type": "2",
                "filename_tokenizer_model": values["tokenizer_url"], "bos": "0", "eos": "0",
                "filename_post_axmodel": "post.axmodel", "filename_tokens_embed": "embed.bin",
                "tokens_embed_num": "151936", "tokens_embed_size": "1536", "use_mmap_load_embed": "0",
                "live_print": "1", "continue": "1", "prompt": "",
            }  # fmt: skip
            if env.get("SIM_REPL") == "context":
                flags |= {"url_tokenizer_model": values["tokenizer_url"], "system_prompt": values["system_prompt"]}
            flags.pop(without, None)
            return ["./main_axcl_aarch64", *(word for name, value in flags.items() for word in (f"--{name}", value))]

        defaults = {"stall_timeout": 10, "pid_file": self.pid_file, "log_path": self.folder / "model.log"}
        program = ReplProgram(command, self.folder, env={**os.environ, **env}, **{**defaults, **(options or {})})
        runtime = AxRepl(program, self.tokenizer, self.server)
        self.made.append(runtime)
        return runtime

    async def start(self, *, options: Mapping[str, Any] | None = None, **env: str) -> AxRepl:
        runtime = self.make(options=options, **env)
        await runtime.start(self.progress.append)
        return runtime

    def prompt(self, text: str) -> Prompt:
        return Prompt(tuple(self.tokenizer.encode_now([text])), ChatRequest(id="r"))


@asynccontextmanager
async def repl_rig(folder: Path, tokenizer: LocalTokenizer) -> AsyncIterator[Rig]:
    for name in ("l0.axmodel", "l1.axmodel", "post.axmodel", "embed.bin"):
        (folder / name).touch()
    (folder / "main_axcl_aarch64").write_bytes(SIMULATOR.read_bytes())
    server = TokenizerServer(tokenizer, port=0, log=logging.getLogger("tokenizer"))
    await server.start()
    rig = Rig(folder, tokenizer, server)
    try:
        yield rig
    finally:
        for runtime in rig.made:
            await runtime.stop()
        await server.stop()


async def reply(runtime: AxRepl, prompt: Prompt, max_tokens: int | None = None) -> tuple[str, int, str | None]:
    """Text, token count and finish reason."""
    text, count, reason = "", 0, None
    async with aclosing(runtime.generate(prompt, Sampling(max_tokens=max_tokens))) as items:
        async for item in items:
            if isinstance(item, Piece):
                assert reason is None
                text, count, reason = text + item.text, count + item.token_count, item.finish_reason
                assert item.token_count == len(item.token_ids)
    return text, count, reason


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
