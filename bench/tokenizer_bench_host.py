"""The process that bench/tokenizer_server.py measures: the real service with a tokenizer server beside it.

Its engine is a script with eight slots that gives 100 tokens per second in each.
"""

import asyncio
import json
import logging
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import uvicorn
import uvloop

from qwen_service.app import create_app
from qwen_service.chat import Sampling
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.engines.loaders import Loaders
from qwen_service.errors import RuntimeFailure
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import Capabilities, Limits, LoadProgress, Piece, Prompt, Runtime
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer

LIMITS = Limits(context=2048, prompt=2047, slots=8)
TOKENS = 1000


class Metronome(Runtime):
    capabilities = Capabilities(sampling=frozenset())

    async def start(self, progress: LoadProgress) -> Limits:
        return LIMITS

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        for _ in range(TOKENS):
            await asyncio.sleep(0.01)
            yield Piece(" word", 1, (3409,))
        yield Piece(finish_reason="stop")

    async def failed(self) -> RuntimeFailure:
        never: asyncio.Future[RuntimeFailure] = asyncio.get_running_loop().create_future()
        return await never

    async def stop(self) -> None:
        pass


def loaders_of(tokenizer: LocalTokenizer) -> Loaders:
    async def bring_up(progress: LoadProgress) -> Engine:
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_ids, eos_token="<|im_end|>")
        return Engine(Metronome(), LIMITS, ModelText(tokenizer, template, OutputFormat.of_template(template.source)))

    def loaders(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
        return {"bench": bring_up}

    return loaders


async def serve(folder: Path) -> None:
    tokenizer = LocalTokenizer(folder)
    server = TokenizerServer(tokenizer, port=0, log=logging.getLogger("tokenizer"))
    await server.start()
    with tempfile.TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0)) as listener:
        model = Path(scratch) / "bench.gguf"
        model.touch()
        settings = Settings(model_path=model, state_dir=Path(scratch), log_dir=Path(scratch))
        app = create_app(settings, loaders=loaders_of(tokenizer))
        print(json.dumps({"tokenizer": server.port, "api": listener.getsockname()[1]}), flush=True)
        await uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
