"""The two speech programs are killed, crash and freeze at random while clients talk and listen; every answer is right or an error."""

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.live_service import Live, ScriptedEngine, live_service
from tests.service_process import is_alive
from tests.speech_programs import recording, speech_folder, speech_is

DURATION = 8.0  # seconds
TIMEOUT = 1.0  # seconds that a frozen program is waited for
FAULTS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)
KINDS = ("speech_to_text", "text_to_speech")
REFUSALS = {429, 502, 503, 504}
PIECES = "This is the first sentence of a long answer. " + "And then one more of them follows. " * 8


class Clients:
    def __init__(self, live: Live) -> None:
        self.live = live
        self.until = time.monotonic() + DURATION
        self.good = dict.fromkeys(KINDS, 0)
        self.refused = 0
        self.cut = 0

    async def ears(self, seconds: float) -> None:
        while time.monotonic() < self.until:
            files = {"file": ("a.wav", recording(seconds))}
            answer = await self.live.http.post("/v1/audio/transcriptions", files=files)
            if self.is_good(answer):
                assert answer.json() == {"text": f"I heard {seconds:.2f} seconds."}
                self.good["speech_to_text"] += 1

    async def voice(self, text: str, expected: int) -> None:
        while time.monotonic() < self.until:
            body = {"input": text, "response_format": "pcm"}
            try:
                answer = await self.live.http.post("/v1/audio/speech", json=body)
            except httpx.RemoteProtocolError:  # it broke off in the middle, and did not end as if it were whole
                self.cut += 1
                continue
            if self.is_good(answer):
                assert abs(len(answer.content) - expected) < 2000
                self.good["text_to_speech"] += 1

    def is_good(self, answer: httpx.Response) -> bool:
        assert answer.status_code == 200 or answer.status_code in REFUSALS, answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
            self.refused += 1
        return answer.status_code == 200


async def trouble(state: Path, until: float, rng: random.Random) -> set[int]:
    """Returns the processes that it met."""
    met = set()
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(0.2, 0.8))
        pid = _pid(state / f"{rng.choice(KINDS)}.pid")
        if pid and is_alive(pid):
            met.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, rng.choice(FAULTS))
    return met


def _pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # between two lives
        return 0


@pytest.mark.slow
async def test_speech_survives_whatever_happens_to_its_programs(tmp_path: Path) -> None:
    engine, rng = ScriptedEngine(), random.Random(5)
    engine.gate.set()
    settings = {
        "speech_to_text": str(speech_folder(tmp_path, "asr_server")),
        "text_to_speech": str(speech_folder(tmp_path, "tts_server")),
        "speech_timeout": TIMEOUT,
    }
    async with live_service(tmp_path, engine, **settings) as live:
        await speech_is(live, "ready")
        clients = Clients(live)
        met, *_ = await asyncio.gather(
            trouble(tmp_path / "state", clients.until, rng),
            clients.ears(0.5),
            clients.ears(1.25),
            clients.voice("Hello there.", 24_000 * 2 * 12 // 100),
            clients.voice(PIECES, 24_000 * 2 * len(PIECES) // 100),
        )
        await speech_is(live, "ready")
        assert (await live.chat()).status_code == 200
        assert (await live.http.get("/health")).json()["status"] == "ok"
        last = {_pid(tmp_path / "state" / f"{kind}.pid") for kind in KINDS}
    assert min(clients.good.values()) > 3
    assert clients.refused > 0
    assert len(met) > 3
    assert [pid for pid in met | last if is_alive(pid)] == []
