"""OpenAI's bodies -> ChatRequest. Pure functions; every refusal names the field."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from qwen_service.api.openai.wire import (
    ChatCompletionBody,
    ChatFields,
    ChatMessage,
    CompletionBody,
    ContentPart,
    ImageUrl,
    ResponseFormat,
    SamplingFields,
    ToolCallPart,
    ToolSpec,
)
from qwen_service.api.pictures import from_url
from qwen_service.api.request_parts import (
    bound_messages,
    make_tool,
    named_call,
    picture_refused,
    required_call,
    stop_texts,
    thinks,
    token_limit,
)
from qwen_service.chat import ChatRequest, Image, JsonFormat, Message, Sampling, Tool, ToolCall, ToolChoice
from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.json_schema import SchemaBudget

TOKEN_ID = re.compile(r"[0-9]{1,9}")


def chat_request(body: ChatCompletionBody | CompletionBody, request_id: str, *, max_messages: int) -> ChatRequest:
    """Convert a chat, or a plain completion that has `messages`: that is answered like a chat."""
    if isinstance(body, CompletionBody) and body.prompt is not None:
        raise InvalidRequest("prompt and messages exclude each other: send one of them.", param="prompt")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: set it to true, too.", param="top_logprobs")
    _refuse_what_we_do_not_have(body)
    messages = body.messages or []
    bound_messages(messages, max_messages)
    schemas = SchemaBudget()
    tools = tuple(_tool(tool, index, schemas) for index, tool in enumerate(body.tools or ()))
    thinking, template_kwargs = _thinking(body)
    sampling = _sampling(body, (body.top_logprobs or 0) if body.logprobs else None)
    return ChatRequest(
        id=request_id,
        model=body.model,
        messages=tuple(_messages(messages)),
        tools=tools,
        tool_choice=_tool_choice(body, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=_format(body.response_format, schemas),
        sampling=replace(sampling, max_tokens=token_limit(body.max_tokens, body.max_completion_tokens)),
        stop=stop_texts(body.stop),
        thinking=thinking,
        template_kwargs=template_kwargs,
        continues=_continues(body, messages),
        session=body.prompt_cache_key or "",
    )


def prompt_requests(body: CompletionBody, request_id: str, *, max_choices: int) -> list[ChatRequest]:
    """Make one request for each choice: n for each prompt."""
    prompts = _prompts(body.prompt or [])
    if not all(prompts) or not prompts:
        expected = "expected a string, token ids, or a list of either"
        raise InvalidRequest(f"prompt is missing, or a prompt in it is empty: {expected}.", param="prompt")
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise Unsupported(f"best_of is {body.best_of}, n is {n}: only the same number is supported.", param="best_of")
    if len(prompts) * n > max_choices:
        asked = f"{len(prompts)} prompts with n={n} ask for {len(prompts) * n} choices"
        raise InvalidRequest(f"{asked}; at most {max_choices} are allowed (max_choices).", param="n")
    logprobs = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    common = ChatRequest(
        id=request_id,
        model=body.model,
        suffix=body.suffix or None,
        sampling=_sampling(body, logprobs),
        stop=stop_texts(body.stop),
    )
    return [choice for prompt in prompts for choice in choices(replace(common, prompt=prompt), n, max_choices)]


def choices(request: ChatRequest, n: int, max_choices: int) -> list[ChatRequest]:
    """Repeat a request n times; when it has a seed, each copy gets its own."""
    if n > max_choices:
        raise InvalidRequest(f"n is {n}; at most {max_choices} choices are allowed (max_choices).", param="n")
    seed = request.sampling.seed
    if seed is None:
        return [request] * n
    return [replace(request, sampling=replace(request.sampling, seed=seed + index)) for index in range(n)]


def _refuse_what_we_do_not_have(chat: ChatFields) -> None:
    answers = "a chat is answered with text only"
    for field, why in (("functions", "use tools"), ("function_call", "use tool_choice"), ("audio", answers)):
        if getattr(chat, field) is not None:
            raise Unsupported(f"{field} is not supported: {why}.", param=field)
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise Unsupported(f'modalities can only be ["text"]: {answers}.', param="modalities")


def _sampling(body: SamplingFields, top_logprobs: int | None) -> Sampling:
    return Sampling(
        max_tokens=token_limit(body.max_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repeat_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(body.logit_bias),
        top_logprobs=top_logprobs,
    )


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float]:
    bias = bias or {}
    if not all(TOKEN_ID.fullmatch(token_id) for token_id in bias):
        text = 'logit_bias has a key that is no token id: expected token ids and numbers, such as {"1234": -100}.'
        raise InvalidRequest(text, param="logit_bias")
    return {int(token_id): value for token_id, value in bias.items()}


def _messages(given: Sequence[ChatMessage]) -> Iterator[Message]:
    """Convert messages. A tool message without an id is the result of the one open call before it."""
    open_calls: list[str] = []
    for index, message in enumerate(given):
        call_id = message.tool_call_id
        if message.role != "tool":
            open_calls = [call.id for call in message.tool_calls or ()]
        elif call_id is None:
            if len(open_calls) != 1:
                text = (
                    f"messages[{index}] needs tool_call_id: the messages before it have {len(open_calls)} open calls."
                )
                raise InvalidRequest(text, param=f"messages[{index}].tool_call_id")
            call_id = open_calls.pop()
        elif call_id in open_calls:
            open_calls.remove(call_id)
        yield _message(message, index, call_id)


def _message(message: ChatMessage, index: int, call_id: str | None) -> Message:
    where = f"messages[{index}]"
    calls = tuple(_tool_call(call, f"{where}.tool_calls") for call in message.tool_calls or ())
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=_content(message.content, f"{where}.content"),
        images=_images(message, f"{where}.content"),
        reasoning=message.reasoning_content or "",
        tool_calls=calls,
        tool_call_id=call_id,
        name=message.name,
    )


def _content(content: str | list[ContentPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _images(message: ChatMessage, where: str) -> tuple[Image, ...]:
    if message.content is None or isinstance(message.content, str):
        return ()
    images = []
    for index, part in enumerate(message.content):
        if part.type not in ("image_url", "input_image"):
            continue
        place = f"{where}[{index}]"
        if message.role != "user":
            raise picture_refused(place)
        url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
        if url is None:
            raise InvalidRequest(f"{place}: a part with a picture needs image_url.url.", param=f"{place}.image_url")
        images.append(from_url(url, f"{place}.image_url"))
    return tuple(images)


def _part(part: ContentPart, where: str) -> str:
    match part.type:
        case "image_url" | "input_image":
            return ""  # _images reads it
        case "text" | "input_text" | "output_text" if part.text is not None:
            return part.text
        case "refusal":
            return part.refusal or ""
        case "text":
            raise InvalidRequest(f"{where}: a part of type text needs the field text.", param=f"{where}.text")
        case other:
            raise Unsupported(f"{where}: parts of type {other!r} are not supported: send text.", param=f"{where}.type")


def _tool_call(call: ToolCallPart, where: str) -> ToolCall:
    arguments = call.function.arguments
    if isinstance(arguments, dict):
        return ToolCall(call.id, call.function.name, json.dumps(arguments, ensure_ascii=False))
    return ToolCall(call.id, call.function.name, call_arguments(arguments, where))


def call_arguments(arguments: str | None, where: str) -> str:
    """The arguments as JSON text. Text that is not JSON, from a reply that was cut, is kept: refusing it would end
    the conversation."""
    with suppress(ValueError):
        try:
            json.loads(arguments or "{}")
        except RecursionError:
            raise InvalidRequest(f"{where}: the arguments are nested too deeply.", param=where) from None
    return arguments or "{}"


def _tool(spec: ToolSpec, index: int, schemas: SchemaBudget) -> Tool:
    function = spec.function
    where = f"tools[{index}].function.parameters"
    return make_tool(function.name, function.description, function.parameters, where, schemas)


def _tool_choice(chat: ChatFields, tools: Sequence[Tool]) -> ToolChoice:
    choice = chat.tool_choice
    if choice is None or isinstance(choice, str):
        return required_call(tools) if choice == "required" else choice or "auto"
    return named_call(choice.function.name, tools, "tool_choice")


def _format(response_format: ResponseFormat | None, schemas: SchemaBudget) -> JsonFormat | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return _json_of(response_format.schema_, "response_format.schema", schemas)
    schema = response_format.json_schema.schema_ if response_format.json_schema is not None else None
    if schema is None:
        raise InvalidRequest("response_format of type json_schema needs json_schema.schema.", param="response_format")
    return _json_of(schema, "response_format.json_schema.schema", schemas)


def _json_of(schema: dict[str, Any] | None, where: str, schemas: SchemaBudget) -> JsonFormat:
    if schema is not None:
        schemas.check(schema, where)
    return JsonFormat(schema)


def _thinking(chat: ChatFields) -> tuple[bool | None, dict[str, object]]:
    kwargs = dict(chat.chat_template_kwargs or {})
    asked = kwargs.pop("enable_thinking", None)
    if asked is not None and not isinstance(asked, bool):
        text = f"enable_thinking is {str(asked)[:40]!r}: expected true or false."
        raise InvalidRequest(text, param="chat_template_kwargs")
    effort = chat.reasoning_effort or (chat.reasoning.effort if chat.reasoning is not None else None)
    return (thinks(effort) if asked is None else asked), kwargs


def _continues(chat: ChatFields, messages: Sequence[ChatMessage]) -> bool:
    if not chat.continue_final_message:
        return False
    field = "continue_final_message"
    if messages[-1].role != "assistant" or messages[-1].tool_calls:
        raise InvalidRequest(f"{field} needs a last message of the assistant that has no tool calls.", param=field)
    is_formatted = chat.response_format is not None and chat.response_format.type != "text"
    if is_formatted or chat.tool_choice not in (None, "none", "auto"):
        raise Unsupported(f"{field} excludes response_format and forced calls, which begin a reply anew.", param=field)
    return True


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(item, int) for item in prompt):
        return [tuple(item for item in prompt if isinstance(item, int))]
    return [item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int)]
