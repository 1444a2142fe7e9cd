"""Folders of the vendor's speech programs, played by simulators, and recordings for them."""

import asyncio
import json
import math
import shutil
from array import array
from pathlib import Path
from typing import Any

from qwen_service.audio.sound import wav_bytes
from tests import ROOT
from tests.live_service import Live
from tests.waiting import until

SIMULATORS = ROOT / "tests" / "simulators"


def speech_folder(folder: Path, program: str, **play: str) -> Path:
    """A model folder with `asr_server` or `tts_server`; `play` are the files that direct it."""
    place = folder / program
    place.mkdir(parents=True)
    shutil.copy(SIMULATORS / program, place)
    direct(place, **play)
    return place


def direct(place: Path, **play: str) -> None:
    for name, content in play.items():
        (place / name).write_text(content)


def recorded(place: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (place / "record").read_text().splitlines()]
    except OSError:
        return []


async def asked(place: Path) -> None:
    """Return when the program has been asked something."""
    await until(lambda: recorded(place))


def recording(seconds: float = 1.5, rate: int = 16_000) -> bytes:
    """A tone, as WAV."""
    samples = array("h", (round(8000 * math.sin(2 * math.pi * 440 * n / rate)) for n in range(round(seconds * rate))))
    return wav_bytes(samples.tobytes(), rate)


async def speech_is(live: Live, *states: str, restarts: int | None = None) -> dict[str, Any]:
    """/health's `speech`, once all of it is in one of these states."""
    async with asyncio.timeout(60):
        while True:
            speech: dict[str, Any] = (await live.http.get("/health")).json()["details"]["speech"]
            if all(
                one["state"] in states and (restarts is None or one["restarts"] >= restarts) for one in speech.values()
            ):
                return speech
            await asyncio.sleep(0.02)  # another process: only the clock helps
