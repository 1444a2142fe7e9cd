"""The worker process of llama.cpp: runs xllamacpp's server on a unix socket until it is stopped.

`python -m qwen_service.runtimes.llamacpp.worker --model FILE --host NAME.sock ...`. Options and routes are those of
the `llama-server` binary that can stand in its place. Errors go to stderr; exit code 1: the model cannot be loaded.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from xllamacpp import CommonParams, Server, llama_pooling_type  # type: ignore[import-untyped]  # it has no stubs


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llamacpp_worker", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--host", required=True, help="path of the unix socket; must end in .sock")
    parser.add_argument("--parallel", type=int, required=True, help="generations at once")
    parser.add_argument("--ctx-size", type=int, required=True, help="tokens of the KV cache")
    parser.add_argument("--batch-size", type=int, required=True, help="tokens of a prompt computed in one step")
    parser.add_argument("--ubatch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cache-ram", type=int, required=True, help="MiB for the prompts of former conversations")
    parser.add_argument("--kv-unified", action="store_true", help="all generations share the context")
    parser.add_argument("--slot-save-path", help="folder for the files of slots; ends in a slash")
    parser.add_argument("--mmproj", help="GGUF file of the encoder of pictures")
    parser.add_argument("--embeddings", action="store_true", help="give vectors instead of text")
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last"), help="how a text's vector is made; else as the file says"
    )
    return parser.parse_args(argv)


def parameters(options: argparse.Namespace) -> CommonParams:
    params = CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_size
    params.n_batch = options.batch_size
    params.n_ubatch = options.ubatch_size
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cache_ram_mib = options.cache_ram
    params.kv_unified = options.kv_unified
    params.cache_idle_slots = False  # idle slots keep their cache until its room is needed
    if options.slot_save_path:
        params.slot_save_path = options.slot_save_path
    params.embedding = options.embeddings
    if options.pooling:
        params.pooling_type = llama_pooling_type[f"LLAMA_POOLING_TYPE_{options.pooling.upper()}"]
    if options.mmproj:
        params.mmproj.path = options.mmproj
    params.fit_params = False  # it would shrink the context to the free memory, silently
    params.ui = False
    params.verbosity = 1  # errors; from 2 on it writes two lines per request
    return params


def main() -> None:
    os.umask(0o077)
    # No handlers: a signal ends the process at once. The server's destructor would wait 30 s for running streams.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        _server = Server(parameters(parse(sys.argv[1:])))  # serves as long as it is referenced
    except RuntimeError as error:
        sys.exit(str(error))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
