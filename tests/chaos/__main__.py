import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.folders import prepare
from tests.chaos.storm import storm

TARGETS = ("llamacpp", "ax_repl", "ax_api", "axllm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos against the whole service.")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=75, help="for each target (75: five minutes for all)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    for target in options.targets or TARGETS:
        folder = Path(tempfile.mkdtemp(prefix="qwen-chaos-"))
        started = time.monotonic()
        try:
            prepare(target, folder)
            figures = asyncio.run(storm(target, folder, options.seconds, options.seed))
        finally:
            shutil.rmtree(folder)
        print(f"{target}, seed {options.seed}, {time.monotonic() - started:.0f} s\n{figures}\n", flush=True)
    return 0


sys.exit(main())
