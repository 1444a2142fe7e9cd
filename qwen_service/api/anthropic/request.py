"""Anthropic's bodies -> ChatRequest. Pure functions; every refusal names the field."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qwen_service.api.anthropic.wire import Block, CountTokensBody, InputMessage, MessagesBody, ToolSpec
from qwen_service.api.pictures import from_base64, from_url
from qwen_service.api.request_parts import (
    bound_messages,
    make_tool,
    named_call,
    picture_refused,
    required_call,
    stop_texts,
)
from qwen_service.chat import ChatRequest, Image, JsonFormat, Message, Sampling, Tool, ToolCall, ToolChoice
from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.json_schema import SchemaBudget

# Claude Code's first system block. It differs in each request, which would make the KV cache useless after it.
BILLING_HEADER = "x-anthropic-billing-header:"
THINKING = {"enabled": True, "disabled": False, "adaptive": None}


def chat_request(body: CountTokensBody, request_id: str, *, max_messages: int) -> ChatRequest:
    bound_messages(body.messages, max_messages)
    schemas = SchemaBudget()
    system = _system(body.system)
    messages = [message for index, given in enumerate(body.messages) for message in _messages(given, index)]
    tools = tuple(_tool(tool, index, schemas) for index, tool in enumerate(body.tools or ()) if _is_function(tool))
    choice = _tool_choice(body, tools)
    response_format = _format(body, schemas)
    last = messages[-1] if messages else Message("user")
    return ChatRequest(
        id=request_id,
        model=body.model,
        messages=(*([Message("system", system)] if system else []), *messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=not (body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use),
        response_format=response_format,
        thinking=THINKING[body.thinking.type] if body.thinking is not None else None,
        continues=_is_open(last) and choice in ("auto", "none") and response_format is None,
    )


def message_request(body: MessagesBody, request_id: str, *, max_messages: int) -> ChatRequest:
    return replace(
        chat_request(body, request_id, max_messages=max_messages),
        sampling=Sampling(max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k),
        stop=stop_texts(body.stop_sequences),
    )


def skipped_tools(body: CountTokensBody) -> tuple[str, ...]:
    """The names of Anthropic's own tools, which are skipped: only its servers or the client's code can describe them."""
    return tuple(f"tools.{tool.name}" for tool in body.tools or () if not _is_function(tool))


def _is_function(tool: ToolSpec) -> bool:
    return tool.type in (None, "custom")


def _is_open(last: Message) -> bool:
    """Whether the conversation ends with text of the assistant, which the reply then continues."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls


def _system(system: str | Sequence[Block] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_text(block, f"system[{index}]") for index, block in enumerate(system)]
    return "\n\n".join(text for text in texts if text and not text.startswith(BILLING_HEADER))


def _messages(message: InputMessage, index: int) -> Iterator[Message]:
    where = f"messages[{index}].content"
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
    elif message.role == "assistant":
        yield _assistant(message.content, where)
    else:
        yield from _user_or_system(message, message.content, where)


def _assistant(blocks: Sequence[Block], where: str) -> Message:
    text, reasoning, calls = [], [], []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        match block.type:
            case "thinking":
                reasoning.append(block.thinking or "")
            case "redacted_thinking":
                pass  # encrypted by Anthropic, unreadable for others
            case "tool_use":
                calls.append(_call(block, place))
            case _:
                text.append(_text(block, place))
    return Message("assistant", "".join(text), reasoning="".join(reasoning), tool_calls=tuple(calls))


def _call(block: Block, where: str) -> ToolCall:
    if not block.id or not block.name:
        raise InvalidRequest(f"{where}: a tool_use block needs id and name.", param=where)
    return ToolCall(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False))


def _user_or_system(message: InputMessage, blocks: Sequence[Block], where: str) -> Iterator[Message]:
    """Convert the blocks in their order: adjacent texts and pictures become one message, each tool result its own message."""
    texts: list[str] = []
    images: list[Image] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if block.type == "image" and message.role == "user":
            images.append(_image(block, place))
            continue
        if block.type != "tool_result":
            texts.append(_text(block, place))
            continue
        if texts or images:
            yield Message(message.role, "".join(texts), images=tuple(images))
            texts, images = [], []
        yield _tool_result(block, place)
    if texts or images or not blocks:
        yield Message(message.role, "".join(texts), images=tuple(images))


def _image(block: Block, where: str) -> Image:
    source = block.source
    if source is None or source.type not in ("base64", "url"):
        raise Unsupported(f"{where}: a picture needs a source of type base64.", param=f"{where}.source")
    if source.type == "url":
        return from_url(source.url or "", f"{where}.source")  # raises, with the reason, unless it is a data: URI
    return from_base64(source.data or "", f"{where}.source")


def _tool_result(block: Block, where: str) -> Message:
    if not block.tool_use_id:
        raise InvalidRequest(f"{where}: a tool_result block needs tool_use_id.", param=f"{where}.tool_use_id")
    content = block.content or ""
    if not isinstance(content, str):
        content = "".join(_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if block.is_error:
        content = f"Error: {content}"  # templates have no other place for the flag
    return Message("tool", content, tool_call_id=block.tool_use_id)


def _text(block: Block, where: str) -> str:
    if block.type == "image":
        raise picture_refused(where)
    if block.type != "text":
        raise Unsupported(f"{where}: blocks of type {block.type!r} are not supported here.", param=f"{where}.type")
    if block.text is None:
        raise InvalidRequest(f"{where}: a text block needs the field text.", param=f"{where}.text")
    return block.text


def _tool(spec: ToolSpec, index: int, schemas: SchemaBudget) -> Tool:
    return make_tool(spec.name, spec.description, spec.input_schema, f"tools[{index}].input_schema", schemas)


def _tool_choice(body: CountTokensBody, tools: Sequence[Tool]) -> ToolChoice:
    choice = body.tool_choice
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "none":
        return "none"
    if choice.type == "any":
        return required_call(tools, "any")
    return named_call(choice.name, tools, "tool_choice.name")


def _format(body: CountTokensBody, schemas: SchemaBudget) -> JsonFormat | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    schema = body.output_config.format.schema_
    schemas.check(schema, "output_config.format.schema")
    return JsonFormat(schema)
