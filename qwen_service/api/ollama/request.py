"""Ollama's bodies -> ChatRequest. Pure functions; every refusal names the field."""

import json
import re
from typing import Any

import orjson

from qwen_service.api.ollama.wire import (
    IGNORED_OPTIONS,
    CallPart,
    ChatBody,
    ChatMessage,
    GenerateBody,
    GenerationFields,
    Options,
    ToolSpec,
)
from qwen_service.api.pictures import from_url
from qwen_service.api.request_parts import bound_messages, make_tool, stop_texts, token_limit
from qwen_service.chat import ChatRequest, Image, JsonFormat, Message, Sampling, Tool, ToolCall
from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.json_schema import SchemaBudget


def chat_request(body: ChatBody, request_id: str, *, max_messages: int) -> ChatRequest:
    messages, schemas = body.messages or [], SchemaBudget()
    bound_messages(messages, max_messages)
    return _request(
        body,
        request_id,
        schemas,
        messages=tuple(_message(message, index) for index, message in enumerate(messages)),
        # A promised format cannot begin in the middle.
        continues=bool(messages) and _is_open(messages[-1]) and not body.format,
        tools=tuple(_tool(tool, index, schemas) for index, tool in enumerate(body.tools or ())),
    )


def generate_request(body: GenerateBody, request_id: str) -> ChatRequest:
    if body.template:
        raise Unsupported("template is not supported: each model has its own template.", param="template")
    if body.raw and (body.system or body.context):
        raise InvalidRequest("raw mode does not support template, system, or context", param="raw")
    images = _images(body.images, "images")
    if body.raw or body.suffix:
        if images:
            raise Unsupported(
                "images are not supported with raw or suffix: such a prompt has no place for pictures.", param="images"
            )
        return _request(body, request_id, SchemaBudget(), prompt=body.prompt or "", suffix=body.suffix or None)
    system = (Message("system", body.system),) if body.system else ()
    return _request(
        body,
        request_id,
        SchemaBudget(),
        messages=(*system, Message("user", body.prompt or "", images=images)),
        context=tuple(body.context or ()),
    )


def ignored_options(body: GenerationFields) -> list[str]:
    return [name for name in IGNORED_OPTIONS if body.options and getattr(body.options, name) is not None]


def _request(body: GenerationFields, request_id: str, schemas: SchemaBudget, **content: Any) -> ChatRequest:
    options = body.options or Options.model_validate({})
    return ChatRequest(
        id=request_id,
        model=body.model,
        response_format=_format(body.format, schemas),
        sampling=_sampling(options, (body.top_logprobs or 0) if body.logprobs else None),
        stop=stop_texts(options.stop),
        thinking=None if body.think in (None, "") else body.think is not False,
        must_think=body.think not in (None, "", False),
        truncate=body.truncate is not False,
        context_size=options.num_ctx or None,
        keep_alive=None if body.keep_alive is None else seconds_of(body.keep_alive),
        **content,
    )


def _sampling(options: Options, top_logprobs: int | None) -> Sampling:
    seed = options.seed
    return Sampling(
        max_tokens=token_limit(options.num_predict),
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=seed if seed is not None and seed >= 0 else None,  # negative: random
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repeat_penalty=options.repeat_penalty,
        top_logprobs=top_logprobs,
    )


def _format(wanted: str | dict[str, Any] | None, schemas: SchemaBudget) -> JsonFormat | None:
    if not wanted:
        return JsonFormat({}) if wanted == {} else None
    if isinstance(wanted, str):
        return JsonFormat()
    schemas.check(wanted, "format")
    return JsonFormat(wanted)


def _message(message: ChatMessage, index: int) -> Message:
    where = f"messages[{index}].images"
    images = _images(message.images, where)
    if images and message.role != "user":
        raise Unsupported(f"{where}: only messages of the user can have pictures; send text here.", param=where)
    calls = enumerate(message.tool_calls or ())
    return Message(
        role=message.role,
        content=message.content or "",
        reasoning=message.thinking or "",
        tool_calls=tuple(_tool_call(call, f"call_{index}_{n}") for n, call in calls),
        tool_call_id=message.tool_call_id,
        name=message.tool_name,
        images=images,
    )


def _is_open(last: ChatMessage) -> bool:
    """Whether the last message is the assistant's, which the model then continues, as with Ollama's templates."""
    return last.role == "assistant" and not last.tool_calls


def _tool_call(call: CallPart, default_id: str) -> ToolCall:
    """Convert a tool call. Arguments that are not JSON, from a reply that was cut, are kept as text: refusing them
    would end the conversation."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return ToolCall(call.id or default_id, call.function.name, str(arguments))
    text = json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call.id or default_id, call.function.name, text)


def _tool(spec: ToolSpec, index: int, schemas: SchemaBudget) -> Tool:
    function = spec.function
    where = f"tools[{index}].function.parameters"
    return make_tool(function.name, function.description, function.parameters, where, schemas)


def _images(images: list[str] | None, where: str) -> tuple[Image, ...]:
    return tuple(from_url(image, f"{where}[{index}]") for index, image in enumerate(images or ()))


FOR_EVER = float("inf")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE = re.compile(rf"([+-]?)((?:{_PART.pattern})+|0)")


def seconds_of(keep_alive: float | str) -> float:
    """Convert keep_alive to seconds. Any negative value means for ever."""
    if isinstance(keep_alive, str):
        match = _WHOLE.fullmatch(keep_alive.strip())
        if match is None:
            text = f'keep_alive is {keep_alive[:40]!r}: expected a number of seconds, or a duration such as "5m".'
            raise InvalidRequest(text, param="keep_alive")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(match[2]))
        keep_alive = -seconds if match[1] == "-" else seconds
    return FOR_EVER if keep_alive < 0 else float(keep_alive)
