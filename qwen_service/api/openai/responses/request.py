"""The body of POST /v1/responses -> ChatRequest. Pure functions; every refusal names the field."""

import re
from typing import Literal

from qwen_service.api.openai.responses.input_items import messages_of
from qwen_service.api.openai.responses.wire import ResponsesBody, TextFormat, ToolChoiceSpec, ToolSpec
from qwen_service.api.request_parts import bound_messages, make_tool, named_call, required_call, thinks, token_limit
from qwen_service.chat import ChatRequest, JsonFormat, Message, Sampling, Tool, ToolChoice
from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.json_schema import SchemaBudget

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")
LOGPROBS = "message.output_text.logprobs"  # of `include`

# field -> what to do instead
STORED = {
    "previous_response_id": "No response is stored here: send the whole conversation as `input`, its output items too.",
    "conversation": "No conversation is stored here: send all of it as `input`.",
    "prompt": "No prompt template is stored here: send its text as `instructions` and `input`.",
}


def chat_request(body: ResponsesBody, request_id: str, *, max_messages: int) -> ChatRequest:
    _refuse_what_we_do_not_have(body)
    if not isinstance(body.input, str):
        bound_messages(body.input, max_messages, "input")
    messages, schemas = _messages(body), SchemaBudget()
    tools = tuple(_tool(tool, index, schemas) for index, tool in enumerate(body.tools or ()) if tool.type == "function")
    tools, choice = _choice(body.tool_choice, tools)
    return ChatRequest(
        id=request_id,
        model=body.model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=_format(body.text.format if body.text is not None else None, schemas),
        sampling=_sampling(body),
        thinking=thinks(body.reasoning.effort if body.reasoning is not None else None),
        truncate=body.truncation != "disabled",
        session=body.prompt_cache_key or "",
    )


def skipped_tools(body: ResponsesBody) -> tuple[str, ...]:
    """The names of tools that are skipped: they need OpenAI's servers or grammars."""
    return tuple(f"tools.{_shown(tool)}" for tool in body.tools or () if tool.type != "function")


def wants_logprobs(body: ResponsesBody) -> bool:
    return LOGPROBS in (body.include or ()) or bool(body.top_logprobs)


def _refuse_what_we_do_not_have(body: ResponsesBody) -> None:
    for name, instead in STORED.items():
        if getattr(body, name) is not None:
            raise Unsupported(f"{name} is not supported. {instead}", param=name)
    if body.background:
        text = "background is not supported, because no response is stored here: send `stream: true` and read the reply as it comes."
        raise Unsupported(text, param="background")


def _messages(body: ResponsesBody) -> list[Message]:
    messages = messages_of(body.input)
    if body.instructions:
        messages.insert(0, Message("system", body.instructions))
    if not messages:
        raise InvalidRequest("input is empty: send a text, or at least one item.", param="input")
    return messages


def _sampling(body: ResponsesBody) -> Sampling:
    return Sampling(
        max_tokens=token_limit(body.max_output_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
    )


def _shown(tool: ToolSpec) -> str:
    """The name of a tool, else its type; empty when a header cannot carry it."""
    return next((text for text in (tool.name, tool.type) if text and FUNCTION_NAME.fullmatch(text)), "unnamed")


def _tool(spec: ToolSpec, index: int, schemas: SchemaBudget) -> Tool:
    where = f"tools[{index}]"
    if spec.name is None or not FUNCTION_NAME.fullmatch(spec.name):
        raise InvalidRequest(
            f"{where}: a function needs a name of letters, digits and _.:- only.", param=f"{where}.name"
        )
    return make_tool(spec.name, spec.description, spec.parameters, f"{where}.parameters", schemas)


def _choice(
    choice: Literal["auto", "none", "required"] | ToolChoiceSpec | None, tools: tuple[Tool, ...]
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model may call, and whether it must call one."""
    match choice:
        case None | "auto":
            return tools, "auto"
        case "none":
            return tools, "none"
        case "required":
            return tools, required_call(tools)
        case ToolChoiceSpec(type="function"):
            return tools, named_call(choice.name, tools, "tool_choice.name")
        case ToolChoiceSpec(type="allowed_tools"):
            allowed = {tool.name for tool in choice.tools or ()}
            tools = tuple(tool for tool in tools if tool.name in allowed)
            return tools, required_call(tools) if choice.mode == "required" else "auto"
    text = f"tool_choice of type {choice.type!r} is not supported: only functions can be called here."
    raise Unsupported(text, param="tool_choice.type")


def _format(text_format: TextFormat | None, schemas: SchemaBudget) -> JsonFormat | None:
    if text_format is None or text_format.type == "text":
        return None
    if text_format.type == "json_object":
        return JsonFormat(None)
    if text_format.schema_ is None:
        raise InvalidRequest("text.format of type json_schema needs schema.", param="text.format.schema")
    schemas.check(text_format.schema_, "text.format.schema")
    return JsonFormat(text_format.schema_)
