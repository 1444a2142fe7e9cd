"""What many replicas cost a router: `python -m bench.router`. No Ray, no card: the pure functions, made-up replicas.

Times are of the processor, since others may use the machine, too. Reports are what the controller sends each ingress.
Each replica holds one talk of 2048 ids; a fourth of the talks share their first 512. The prompt continues one of them.
"""

import argparse
import json
import pickle
import random
import statistics
import time

from qwen_service.cluster.ranking import Standing, held, rank
from qwen_service.cluster.wire import Report
from qwen_service.runtime import HeldIds

CONTEXT, SHARED = 2048, 512  # ids
ROUNDS = 30


def replicas(count: int, seed: int = 1) -> tuple[list[Standing], list[int]]:
    """And the prompt: the talk of the one in the middle, with another question of 64 ids."""
    dice = random.Random(seed)
    system = [dice.randrange(150_000) for _ in range(SHARED)]
    talks = [
        (system if number % 4 == 0 else []) + [dice.randrange(150_000) for _ in range(CONTEXT - SHARED)]
        for number in range(count)
    ]
    standings = [
        Standing(f"r{number}", running=number % 3 == 0, held=(held(HeldIds(tuple(talk), partly=True)),), idle=number)
        for number, talk in enumerate(talks)
    ]
    return standings, talks[count // 2] + [dice.randrange(150_000) for _ in range(64)]


def measure(count: int) -> dict[str, float]:
    standings, prompt = replicas(count)
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        order = rank(prompt, standings)
        times.append(1000 * (time.process_time() - began))
        assert order[0] == f"r{count // 2}"
    size, packing, unpacking = reports(standings)
    return {
        "replicas": count,
        "choice_ms": statistics.median(times),
        "reports_bytes": size,
        "pack_ms": packing,
        "unpack_ms": unpacking,
    }


def reports(standings: list[Standing]) -> tuple[int, float, float]:
    """Bytes of one report of each, and the milliseconds to pack and to unpack them."""
    written = [
        Report(f"pi-{number}", "card 0", "qwen3-4b", "ready", held=standing.held, seen=(f"{number:032d}",) * 20)
        for number, standing in enumerate(standings)
    ]
    began = time.process_time()
    packed = pickle.dumps(written)
    between = time.process_time()
    pickle.loads(packed)
    return len(packed), 1000 * (between - began), 1000 * (time.process_time() - between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(count) for count in (1, 10, 100, 1000)]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(
            "{replicas:5.0f} replicas: choice {choice_ms:7.3f} ms, reports {reports_bytes:8.0f} bytes,"
            " pack {pack_ms:6.2f} ms, unpack {unpack_ms:6.2f} ms".format(**result)
        )


if __name__ == "__main__":
    main()
