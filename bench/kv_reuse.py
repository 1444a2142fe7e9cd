"""A talk on Qwen3-4B's API runtime: what of it is prefilled when its KV cache is continued, and when each turn resets.

    python -m bench.kv_reuse TOKENIZER_FOLDER [--turns 10] [--step 1.2] [--json]

The service's own history, tokenizer server and runtime drive the simulator of the vendor's program, which records
what its KV cache was given. Times are computed: the hardware prefills 128 ids per step of --step seconds. For the
second way, another prompt comes between the turns, as from a second client: then nothing can be continued.
"""

import argparse
import asyncio
import json
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_service.chat import ChatRequest, Message, Sampling
from qwen_service.engine import ModelText
from qwen_service.engines.served import ServedModel
from qwen_service.models.installed import InstalledModel
from qwen_service.models.spec import ModelSpec
from qwen_service.pipeline.conversation import SessionManager
from qwen_service.runtime import Limits, Piece, Prompt
from qwen_service.runtimes.axera.api import AxApi
from qwen_service.runtimes.axera.program import AxeraProgram
from qwen_service.runtimes.axera.tokenizer_server import TokenizerServer
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer

SIMULATOR = Path(__file__).parent.parent / "qwen_service" / "simulators" / "main_api"
CHUNK = 128  # ids of one prefill step
SYSTEM = "You are a patient teacher of physics. Answer in a few sentences, with numbers where they help."
QUESTIONS = (
    "Why is the sky blue?",
    "And why is it red in the evening?",
    "Would it be blue on Mars, too?",
    "How thick is our atmosphere, if one could peel it off?",
    "What would happen to the colour if it were twice as thick?",
    "Does a rainbow have to do with the same effect?",
    "Why is a rainbow round?",
    "Can I see all of the circle?",
    "What is the second, weaker bow that one sometimes sees?",
    "Sum up in three points what we have talked about.",
)
ANSWER = (
    "Sunlight is a mixture of all colours, and on its way through the air a small part of it meets molecules and is"
    " scattered. How much depends on the wavelength: blue light of 450 nanometres is scattered about five times as"
    " strongly as red light of 680. So from all directions of the sky it is mostly blue that reaches your eye, while the"
    " direct light of the sun lacks a little of it and looks yellowish. The longer the way through the air, the more of"
    " the blue is gone. That is the whole secret, and it explains most of what you asked before as well."
)


@dataclass(frozen=True)
class Turn:
    prompt: int  # ids
    new: int  # of them, those that were neither asked nor answered before
    prefilled: int
    steps: int


class Talk:
    """One client's talk; `history` is what the service makes of it."""

    def __init__(self, runtime: AxApi, limits: Limits, tokenizer: LocalTokenizer, record: Path) -> None:
        self._runtime = runtime
        self._limits = limits
        self._text = ModelText(tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer.special_ids), OutputFormat())
        self._record = record
        self._sessions = SessionManager()
        self._model = ServedModel(InstalledModel(ModelSpec("qwen3-4b", "ax_api", ()), record.parent), ())
        self._messages = [Message("system", SYSTEM)]
        self._known = 1  # the first id of every conversation is prefilled when the model is loaded

    async def turn(self, question: str) -> Turn:
        self._messages.append(Message("user", question))
        request = ChatRequest("r", messages=tuple(self._messages), thinking=False)
        fitted = await self._sessions.fit(self._model, self._text, self._limits, request)
        if fitted.trimmed:
            sys.exit("The talk is too long for the context: fewer --turns.")
        before = self._record.stat().st_size
        pieces = await generate(self._runtime, fitted.prompt)
        reply = Message("assistant", "".join(piece.text for piece in pieces))
        ids = [token for piece in pieces for token in piece.token_ids]
        self._sessions.remember(self._model, fitted.prompt, reply, ids)
        self._messages.append(reply)
        return self._measured(len(fitted.prompt.token_ids), len(ids), self._record.read_bytes()[before:])

    def _measured(self, prompt: int, reply: int, recorded: bytes) -> Turn:
        events = map(json.loads, recorded.splitlines())
        computed = [event["computed"] for event in events if "computed" in event]
        new, self._known = prompt - self._known, prompt + reply
        return Turn(prompt, new, sum(computed), sum(math.ceil(part / CHUNK) for part in computed))


async def generate(runtime: AxApi, prompt: Prompt) -> list[Piece]:
    async with aclosing(runtime.generate(prompt, Sampling())) as items:
        return [item async for item in items if isinstance(item, Piece)]


async def talk(folder: Path, tokenizer: LocalTokenizer, turns: int, *, disturbed: bool) -> list[Turn]:
    """`disturbed`: another client asks something after each turn."""
    record = folder / "kv.jsonl"
    record.touch()
    answers = [tokenizer.encode_now([f"{place}. {ANSWER}"]) for place in range(1, turns + 1)]
    script = [ids for answer in answers for ids in (answer, [13])] if disturbed else answers
    other = Prompt((872, 198), ChatRequest("other"))
    server = TokenizerServer(tokenizer, port=0, log=logging.getLogger("tokenizer"))
    await server.start()
    runtime = AxApi(program(folder, record, script), tokenizer, server)
    try:
        one = Talk(runtime, await runtime.start(lambda _: None), tokenizer, record)
        result = []
        for turn in range(turns):
            result.append(await one.turn(QUESTIONS[turn % len(QUESTIONS)]))
            if disturbed:
                await generate(runtime, other)
        return result
    finally:
        await runtime.stop()
        await server.stop()


def program(folder: Path, record: Path, script: list[list[int]]) -> AxeraProgram:
    (folder / "embed.bin").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    play = {"SIM_PORT": str(port), "SIM_RECORD": str(record), "SIM_REPLY": json.dumps(script)}
    return AxeraProgram(command=command, folder=folder, env={**os.environ, **play}, port=port)


def command(values: Mapping[str, str]) -> list[str]:
    flags = {
        "system_prompt": values["system_prompt"], "template_filename_axmodel": "l%d.axmodel", "axmodel_num": "36",
        "url_tokenizer_model": values["tokenizer_url"], "filename_post_axmodel": "post.axmodel",
        "filename_tokens_embed": "embed.bin", "tokens_embed_num": "151936", "tokens_embed_size": "2560",
        "use_mmap_load_embed": "0",
    }  # fmt: skip
    return [sys.executable, str(SIMULATOR), *(part for name, value in flags.items() for part in (f"--{name}", value))]


def table(continued: list[Turn], reset: list[Turn], step: float) -> str:
    head = "| turn | prompt | new | prefilled | first token | prefilled by resets | first token |\n|" + "---:|" * 7
    rows = [
        f"| {place} | {one.prompt} | {one.new} | {one.prefilled} | {one.steps * step:.1f} s"
        f" | {other.prefilled} | {other.steps * step:.1f} s |"
        for place, (one, other) in enumerate(zip(continued, reset, strict=True), 1)
    ]
    return "\n".join([head, *rows, summary(continued, "continued"), summary(reset, "reset each time")])


def summary(turns: list[Turn], name: str) -> str:
    prefilled, new = sum(turn.prefilled for turn in turns), sum(turn.new for turn in turns)
    steps = sum(turn.steps for turn in turns)
    return f"{name}: {prefilled} ids prefilled for {new} new ones, {prefilled / new:.2f} x, {steps} steps"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with Qwen3's tokenizer.json and tokenizer_config.json")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--step", type=float, default=1.2, help="seconds per prefill of 128 ids")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    tokenizer = LocalTokenizer(chosen.tokenizer)
    both = []
    for disturbed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            both.append(await talk(Path(folder), tokenizer, chosen.turns, disturbed=disturbed))
    continued, reset = both
    if chosen.json:
        print(json.dumps({"continued": list(map(asdict, continued)), "reset": list(map(asdict, reset))}, indent=2))
    else:
        print(table(continued, reset, chosen.step))


if __name__ == "__main__":
    asyncio.run(main())
