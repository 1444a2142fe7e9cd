"""How long until the first word: talks as people and programs hold them, with the simulated Qwen3-4B at a card's pace.

    python -m bench.first_word TOKENIZER_FOLDER [--only NAME ...] [--gguf FILE] [--pause 8] [--step-ms 1200] [--token-ms 270]
                               [--service FOLDER] [--json]

The service is started as a user starts it. Beside each measured time stands the hardware's limit: the prefill steps of
128 ids that the question itself takes, and two tokens: the program hands over three at a time, of which the first comes of
the prefill. --service names the checkout whose service is measured, for a comparison with an older one.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from bench.soak_service import ROOT, lay_tokenizer, listening_url
from qwen_service.text.tokenizer import LocalTokenizer

MODEL = "qwen3-4b"
PROGRAMS = ROOT / "tests" / "simulators"
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
BATCH = 3  # ids that the program hands over at a time
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "quietly",
    "mix",
    "boxes",
    "of",
    "liquid",
    "jade",
]
SYSTEM = "You are a patient teacher of physics. Answer in a few sentences."

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class First:
    """One request: seconds until its first word, and what its usage says."""

    seconds: float
    prompt: int
    cached: int


@dataclass
class Client:
    http: httpx2.AsyncClient
    pause: float
    firsts: list[First] = field(default_factory=list)

    async def ask(self, messages: Messages, *, leave_after: int = 0, **fields: Any) -> str:
        """The reply, as far as it was read: `leave_after` so many events with text the client goes."""
        body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **fields}
        began, first, text = time.monotonic(), 0.0, ""
        usage: dict[str, Any] = {}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != httpx2.codes.OK:
                sys.exit(f"The service answered {answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                usage = event.get("usage") or usage
                if piece := "".join(choice["delta"].get("content") or "" for choice in event["choices"]):
                    first, text = first or time.monotonic() - began, text + piece
                    leave_after -= 1
                    if leave_after == 0:
                        break
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", -1)
        self.firsts.append(First(first, usage.get("prompt_tokens", 0), cached))
        await asyncio.sleep(self.pause)
        return text


Talk = Callable[[Client], Awaitable[None]]


async def converse(client: Client, turns: int, **fields: Any) -> None:
    messages: Messages = [{"role": "system", "content": SYSTEM}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}: {sentence(turn, 24)}?"})
        messages.append({"role": "assistant", "content": await client.ask(messages, **fields)})


async def whole(client: Client) -> None:
    await converse(client, 5)


async def cut(client: Client) -> None:
    await converse(client, 5, max_tokens=50)


async def cut_badly(client: Client) -> None:
    await converse(client, 5, max_tokens=49)


async def leaving(client: Client) -> None:
    await converse(client, 5, leave_after=8)


async def stop_string(client: Client) -> None:
    await converse(client, 5, stop=["wizards"])


async def new_each_time(client: Client) -> None:
    for turn in range(5):
        await client.ask([{"role": "user", "content": f"{turn}. {sentence(turn, 60)}?"}], max_tokens=12)


def voice_messages(turn: int) -> Messages:
    clock = f"Current time is 10:{turn:02}:{7 * turn % 60:02}. Today's date is 2026-11-27."
    entities = "\n".join(f"- light.room_{place}: {sentence(place, 9)}" for place in range(38))
    system = f"You are a voice assistant for a home.\n{clock}\nAnswer in one sentence.\n{entities}"
    return [{"role": "system", "content": system}, {"role": "user", "content": f"Is lamp {turn} on?"}]


async def voice(client: Client) -> None:
    for turn in range(5):
        await client.ask(voice_messages(turn), max_tokens=12)


async def in_turn(client: Client) -> None:
    """Two with one system message, each of whom goes on after the other."""
    system = {"role": "system", "content": SYSTEM}
    talks: dict[str, Messages] = {"left": [system], "right": [system]}
    for turn in range(5):
        for name, messages in talks.items():
            question = f"From the {name}, question {turn}: {sentence(turn, 24)}?"
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": await client.ask(messages)})


def sentence(start: int, length: int) -> str:
    return " ".join(WORDS[(start * 5 + place) % len(WORDS)] for place in range(length))


@dataclass(frozen=True)
class Scenario:
    """`from_request`: the first request whose time counts; those before it cannot be better."""

    name: str
    title: str
    talk: Talk
    from_request: int = 1
    restart: bool = False
    axllm: bool = False  # played in place of main_api
    gguf: bool = False  # llama.cpp itself, with the model of --gguf


SCENARIOS = (
    Scenario("whole", "replies that end by themselves", whole),
    Scenario("cut", "replies cut by max_tokens 50", cut),
    Scenario("cut-badly", "replies cut by max_tokens 49 = 3k + 1", cut_badly),
    Scenario("leaving", "client leaves mid-reply, then goes on", leaving),
    Scenario("stop", "replies ended by a stop string", stop_string),
    Scenario("new", "a new conversation each time, up to 128 ids", new_each_time, from_request=0),
    Scenario("voice", "voice: a long head with a clock, a new question each time", voice, from_request=2),
    Scenario("restart", "the same after a restart of the service, first request", voice, from_request=0, restart=True),
    Scenario("axllm-in-turn", "axllm, two clients in turn with one system message", in_turn, 2, axllm=True),
    Scenario("llamacpp", "llama.cpp, a talk of 900 ids goes on after a restart", whole, 2, gguf=True),
)


class Bench:
    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._reply = LocalTokenizer(chosen.tokenizer).encode_now([sentence(0, 60)])

    def limit(self, scenario: Scenario, firsts: Sequence[First]) -> float:
        """Seconds. axllm hands over each token as it comes. For llama.cpp it is what was measured without a restart."""
        if scenario.gguf:
            return firsts[1].seconds
        tokens = 1 if scenario.axllm else BATCH - 1
        return float(self._chosen.step_ms + tokens * self._chosen.token_ms) / 1000

    async def over_restart(self) -> list[First]:
        """Three turns of one talk; before the third the service is started again."""
        messages: Messages = [{"role": "system", "content": f"{SYSTEM} {sentence(0, 700)}."}]
        firsts: list[First] = []
        with tempfile.TemporaryDirectory() as folder:
            for turns in ((0, 1), (2,)):
                async with self._service(Path(folder), ["--model-path", str(self._chosen.gguf.resolve())]) as http:
                    client = Client(http, self._chosen.pause, firsts)
                    for turn in turns:
                        messages.append({"role": "user", "content": f"Question {turn}: {sentence(turn, 24)}?"})
                        reply = await client.ask(messages, max_tokens=24, temperature=0)
                        messages.append({"role": "assistant", "content": reply})
        return firsts

    async def run(self, scenario: Scenario) -> list[First]:
        if scenario.gguf:
            return await self.over_restart()
        with tempfile.TemporaryDirectory() as folder:
            lay_tokenizer(MODEL, self._chosen.tokenizer, Path(folder))
            if scenario.axllm:
                lay_axllm(Path(folder), self._chosen.tokenizer)
                what = ["--model", "talk", "--axcl-smi", str(PROGRAMS / "axcl-smi")]
            else:
                what = ["--simulate", MODEL]
            if scenario.restart:
                async with self._service(Path(folder), what) as http:
                    await scenario.talk(Client(http, self._chosen.pause))
            async with self._service(Path(folder), what, axllm=scenario.axllm) as http:
                client = Client(http, self._chosen.pause)
                if scenario.restart:
                    await asyncio.sleep(self._chosen.pause)
                    await client.ask(voice_messages(11), max_tokens=12)
                else:
                    await scenario.talk(client)
        return client.firsts

    @asynccontextmanager
    async def _service(
        self, folder: Path, what: Sequence[str], *, axllm: bool = False
    ) -> AsyncIterator[httpx2.AsyncClient]:
        port = free_port()  # of the simulated program
        command = [sys.executable, "-m", "qwen_service", "serve", *what, "--port", "0",
                   "--host", "127.0.0.1", "--tokenizer-port", "0", "--state-dir", str(folder / "state"),
                   "--models-dir", str(folder / "models"), "--runtime-port", str(port)]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN_")}
        pace = {"SIM_TOKEN": str(self._chosen.token_ms / 1000), "SIM_STEP": str(self._chosen.step_ms / 1000)}
        reply = [f"{word} " for word in sentence(0, 60).split()] if axllm else self._reply
        play = {"SIM_REPLY": json.dumps(reply), "SIM_PORT": str(port), **pace}
        play["PYTHONPATH"] = str(self._chosen.service)
        log = folder / "service.log"
        process = launched(command, self._chosen.service, environment | play, log)
        try:
            url = await listening_url(process, log)
            async with httpx2.AsyncClient(base_url=url, timeout=600) as http:
                while (await http.get("/health")).status_code != httpx2.codes.OK:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                yield http
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 60)
            if self._chosen.log:
                shutil.copy(log, self._chosen.log)


def lay_axllm(folder: Path, tokenizer: Path) -> None:
    """A model folder as axllm takes it, with the simulator in its place; of Qwen3-4B's 36 layers the names only."""
    model = folder / "models" / "talk"
    shutil.copytree(tokenizer, model / "tokenizer", ignore=lambda _, names: set(names) - TOKENIZER_FILES)
    config = {"model_name": "talk", "axmodel_num": 36, "template_filename_axmodel": "l%d.axmodel"}
    (model / "config.json").write_text(json.dumps({**config, "filename_post_axmodel": "post.axmodel"}))
    for name in ("post", *(f"l{number}" for number in range(36))):
        (model / f"{name}.axmodel").touch()
    source = (PROGRAMS / "axllm").read_text().partition("\n")[2]
    (model / "axllm").write_text(f"#!{sys.executable}\n{source}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launched(command: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def line(scenario: Scenario, firsts: Sequence[First], limit: float) -> str:
    counted = firsts[scenario.from_request :]
    times = " ".join(f"{first.seconds:.1f}" for first in firsts)
    worst = max(first.seconds for first in counted)
    return f"| {scenario.title} | {times} | {worst:.2f} s | {limit:.2f} s |"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="folder with Qwen3's tokenizer.json and tokenizer_config.json")
    parser.add_argument("--gguf", type=Path, help="a model file for llama.cpp, in a talk over a restart")
    parser.add_argument("--only", nargs="*", default=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--pause", type=float, default=8.0, help="seconds between two requests")
    parser.add_argument("--step-ms", type=float, default=1200)
    parser.add_argument("--token-ms", type=float, default=270)
    parser.add_argument("--service", type=Path, default=ROOT, help="the checkout whose service is measured")
    parser.add_argument("--log", type=Path, help="where the log of the last service goes")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    bench = Bench(chosen)
    results = {}
    if not chosen.json:
        print("| scenario | first words, in turn | the worst that counts | limit |\n|---|--:|--:|--:|")
    for scenario in SCENARIOS:
        if scenario.name in chosen.only and (chosen.gguf is not None or not scenario.gguf):
            results[scenario.name] = await bench.run(scenario)
            if not chosen.json:
                print(line(scenario, results[scenario.name], bench.limit(scenario, results[scenario.name])), flush=True)
    if chosen.json:
        print(json.dumps({name: list(map(asdict, firsts)) for name, firsts in results.items()}, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
