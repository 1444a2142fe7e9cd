"""A real model for a simulator: token ids in, token ids out, whatever vocabulary the GGUF file has itself.

Texts are exchanged with it, not ids. It must know ChatML's control tokens, as Qwen and SmolLM2 do.
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xllamacpp import CommonParams, Server  # type: ignore[import-untyped]  # it has no stubs


def sampling() -> dict[str, float]:
    """As post_config.json in the working directory says; greedy without it."""
    path = Path("post_config.json")
    config = json.loads(path.read_text()) if path.exists() else {}
    found = {"temperature": config["temperature"] if config.get("enable_temperature") else 0.0}
    if config.get("enable_repetition_penalty"):
        found |= {"repeat_penalty": config["repetition_penalty"], "repeat_last_n": config["penalty_window"]}
    for key in ("top_p", "top_k"):
        if config.get(f"enable_{key}_sampling"):
            found[key] = config[key]
    return found


class RealModel:
    """`ask` is a POST to the tokenizer server: its /encode and /decode for people translate the vocabularies."""

    def __init__(self, path: str, ask: Callable[[str, dict[str, object]], dict[str, Any]]) -> None:
        self.ask = ask
        self.socket = str(Path(tempfile.mkdtemp(prefix="main_axcl")) / "engine.sock")
        params = CommonParams()
        params.model.path, params.hostnames = path, [self.socket]
        params.n_parallel, params.n_ctx, params.n_batch, params.cache_ram_mib = 1, 2048, 256, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) - 1)
        params.ui, params.verbosity = False, 0
        self.server = Server(params)

    def ids(self, prompt: list[int]) -> Iterator[int]:
        text = "".join(self.pieces(prompt))
        pending = ""
        for piece in self.stream(text):
            pending += piece
            # A word goes out when the next one begins, so that it is tokenized as the model would have.
            word, space, rest = pending.rpartition(" ")
            if word:
                yield from self.ask("/encode", {"text": word})["tokens"]
                pending = space + rest
        if pending:
            yield from self.ask("/encode", {"text": pending})["tokens"]

    def pieces(self, prompt: list[int]) -> Iterator[str]:
        controls = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
        run: list[int] = []
        for id_ in [*prompt, 151643]:
            if id_ in controls:
                yield self.ask("/decode", {"tokens": run})["text"] if run else ""
                yield controls[id_] if id_ != 151643 else ""
                run = []
            else:
                run.append(id_)

    def stream(self, prompt: str) -> Iterator[str]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            limits = {"n_predict": 900, "stop": ["<|im_end|>", "<|endoftext|>"]}
            body = json.dumps({"prompt": prompt, "stream": True, **limits, **sampling()}).encode()
            head = f"POST /completion HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            for line in connection.makefile("rb"):
                if line.startswith(b"data: {"):
                    yield str(json.loads(line[6:]).get("content", ""))
