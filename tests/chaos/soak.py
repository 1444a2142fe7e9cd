"""The line full for a long time, and what that does to the service's memory.

python -m tests.chaos.soak ax_repl --minutes 60
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.chaos.clients import Clients
from tests.chaos.folders import prepare
from tests.chaos.process import Service

CLIENTS = 24  # more than slots and line together
TOKEN_MS = "10"  # of the simulated card: quicker than a real one, slow enough to leave the machine alone


async def soak(target: str, folder: Path, minutes: float, seed: int) -> None:
    outcomes: Counter[str] = Counter()
    service = Service(target, folder, SIM_TOKEN_MS=TOKEN_MS, SIM_TOKEN=str(int(TOKEN_MS) / 1000))
    async with httpx.AsyncClient(base_url=await service.url(), timeout=120) as http:
        clients = Clients(http, random.Random(seed), echo=target != "llamacpp")
        end = time.monotonic() + minutes * 60

        async def use() -> None:
            while time.monotonic() < end:
                outcome = await clients.any()
                outcomes[outcome] += 1
                await asyncio.sleep(0.0 if " 200" in outcome else 1.0)

        async def watch() -> None:
            begin = time.monotonic()
            while time.monotonic() < end:
                now, details = service.sample(), (await http.get("/health")).json()["details"]
                queue, model = details["queue"], details["model"]
                line = f"{(time.monotonic() - begin) / 60:6.1f} min  {now.rss / 1e6:6.1f} MB  {now.files:3} files"
                print(
                    f"{line}  {queue['running']} run, {queue['waiting']} wait, {outcomes.total()} done"
                    f", {model['restarts']} restarts {model['error'] or ''}",
                    flush=True,
                )
                await asyncio.sleep(60)

        await asyncio.gather(watch(), *(use() for _ in range(CLIENTS)))
    await service.stop()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6} {outcome}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qwen-soak-"))
    try:
        prepare(options.target, folder)
        asyncio.run(soak(options.target, folder, options.minutes, options.seed))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
