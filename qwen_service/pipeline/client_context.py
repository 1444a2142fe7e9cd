"""`context` of /api/generate: the ids of a conversation, which the client was given and sends back."""

from dataclasses import replace

from qwen_service.chat import ChatRequest, Message
from qwen_service.engine import ModelText
from qwen_service.errors import Unsupported


async def continued(text: ModelText, request: ChatRequest) -> ChatRequest:
    """Turn the request into a prompt of ids: the client's ids, then the text that the template writes after a reply."""
    if not request.context:
        return request
    turn = (Message("user", "-"), Message("assistant", "-"), request.messages[-1])
    rest = text.template.render_after(turn, 1, thinking=request.thinking)
    if rest is None:
        raise Unsupported("this model's template cannot continue a context; use /api/chat", param="context")
    ids = (*request.context, *await text.tokenizer.encode(rest))
    return replace(request, messages=(), prompt=ids, context=())
