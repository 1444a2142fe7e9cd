"""POST /v1/embeddings: answers with numbers or base64 (which the official client asks for)."""

import base64
import struct
from typing import Any

from qwen_service.api.openai.wire import EmbeddingsBody
from qwen_service.engines.embeddings import Embedded, Input


def inputs(body: EmbeddingsBody) -> list[Input]:
    if isinstance(body.input, str):
        return [body.input]
    ids = [item for item in body.input if isinstance(item, int)]
    return [ids] if ids else [item for item in body.input if not isinstance(item, int)]


def embeddings_object(embedded: Embedded, body: EmbeddingsBody) -> dict[str, Any]:
    encode = _base64 if body.encoding_format == "base64" else list[float]
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return {"object": "list", "data": data, "model": embedded.model, "usage": usage}


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
