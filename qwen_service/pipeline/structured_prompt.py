"""The words with which a form is asked for where no grammar can enforce it."""

import json
from dataclasses import replace

from qwen_service.chat import ChatRequest, Message
from qwen_service.errors import Unsupported
from qwen_service.pipeline.structured_reply import Reply, forced_tools


def ask(request: ChatRequest) -> ChatRequest:
    """The request with the instructions at the end of its system message."""
    if request.prompt is not None:
        raise Unsupported("This engine cannot hold the reply to a raw prompt to a format.", param="response_format")
    instructions = _call_instructions(request) or _json_instructions(request)
    first, *others = request.messages or (Message("system"),)
    if first.role != "system":
        return replace(request, messages=(Message("system", instructions), first, *others))
    system = replace(first, content=f"{first.content}\n\n{instructions}".lstrip())
    return replace(request, messages=(system, *others))


def ask_again(request: ChatRequest, reply: Reply, fault: str) -> ChatRequest:
    # Not from the user: the last user message is never trimmed away, and that must stay the question.
    complaint = Message("system", f"Your reply cannot be used: {fault}. Reply again, correctly, and with nothing else.")
    return replace(request, messages=(*request.messages, reply.message(), complaint))


def _call_instructions(request: ChatRequest) -> str:
    names = [tool.name for tool in forced_tools(request)]
    if not names:
        return ""
    return f"You must reply with a function call and no other text. Call {' or '.join(names)}."


def _json_instructions(request: ChatRequest) -> str:
    schema = request.response_format.schema if request.response_format else None
    instructions = "Reply with JSON only: no explanation and no code fence."
    if request.tools and request.tool_choice == "auto":
        instructions = f"Call a function, or else: {instructions}"
    if schema is None:
        return f"{instructions} It must be one JSON object."
    return f"{instructions} It must satisfy this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
