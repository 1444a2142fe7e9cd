"""python -m bench.load: the load generator."""

import argparse
import sys

from bench.load.command import add_options, bench
from qwen_service.errors import ServiceError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.load")
    add_options(parser)
    try:
        sys.exit(bench(parser.parse_args()))
    except ServiceError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        sys.exit(1)
