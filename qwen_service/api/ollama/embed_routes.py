"""Ollama's routes for embeddings, the newer and the older one."""

import time

from fastapi import APIRouter
from starlette.responses import Response

from qwen_service.api.ollama.wire import EmbedBody, EmbeddingsBody
from qwen_service.api.reply import json_response
from qwen_service.api.streaming import WholeReply
from qwen_service.service import Service


def add_embed_routes(router: APIRouter, service: Service) -> None:
    @router.post("/api/embed", summary="Vectors of texts, where a model for embeddings is installed")
    async def embed(body: EmbedBody) -> Response:
        async def whole() -> Response:
            began = time.monotonic()
            inputs = ([body.input] if body.input else []) if isinstance(body.input, str) else body.input
            embedded = await service.embeddings.embed(
                body.model, inputs, truncate=body.truncate is not False, dimensions=body.dimensions
            )
            took = round((time.monotonic() - began) * 1e9)
            figures = {"total_duration": took, "load_duration": 0, "prompt_eval_count": embedded.tokens}
            return json_response({"model": body.model, "embeddings": embedded.vectors} | figures)

        return WholeReply(whole)

    @router.post("/api/embeddings", summary="The vector of one text (older form)")
    async def embeddings(body: EmbeddingsBody) -> Response:
        async def whole() -> Response:
            texts = (
                [body.prompt] if body.prompt else []
            )  # without a text there is no vector: clients load the model that way
            embedded = await service.embeddings.embed(body.model, texts, truncate=True)
            return json_response({"embedding": embedded.vectors[0] if embedded.vectors else []})

        return WholeReply(whole)
