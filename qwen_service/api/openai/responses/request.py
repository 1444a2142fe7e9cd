"""The body of POST /v1/responses -> ChatRequest. Pure functions; every refusal names the field."""

import re

from qwen_service.api.openai.responses.input_items import messages_of
from qwen_service.api.openai.responses.wire import ResponsesBody, TextFormat, ToolChoiceSpec, ToolSpec
from qwen_service.chat import ChatRequest, JsonFormat, Message, NamedTool, Sampling, Tool, ToolChoice
from qwen_service.errors import InvalidRequest, RequestTooLarge, Unsupported
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
    if not isinstance(body.input, str) and len(body.input) > max_messages:
        raise RequestTooLarge(
            f"{len(body.input)} items, at most {max_messages} are allowed (max_messages)", param="input"
        )
    messages, schemas = _messages(body), SchemaBudget()
    tools = tuple(_tool(tool, index, schemas) for index, tool in enumerate(body.tools or ()) if tool.type == "function")
    tools, choice = _choice(body.tool_choice, tools)
    effort = body.reasoning.effort if body.reasoning is not None else None
    return ChatRequest(
        id=request_id,
        model=body.model,
        messages=tuple(messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=_format(body.text.format if body.text is not None else None, schemas),
        sampling=_sampling(body),
        thinking=None if effort is None else effort not in ("none", "minimal"),
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
        raise Unsupported(
            "background is not supported: no response is stored here. Send `stream: true` and read the answer as it"
            " comes, or wait for it.",
            param="background",
        )


def _messages(body: ResponsesBody) -> list[Message]:
    messages = messages_of(body.input)
    if body.instructions:
        messages.insert(0, Message("system", body.instructions))
    if not messages:
        raise InvalidRequest("input is empty", param="input")
    return messages


def _sampling(body: ResponsesBody) -> Sampling:
    limit = body.max_output_tokens
    return Sampling(
        max_tokens=limit if limit is not None and limit > 0 else None,  # -1: no limit
        temperature=body.temperature,
        top_p=body.top_p,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
    )


def _shown(tool: ToolSpec) -> str:
    """The name of a tool, else its type; empty when a header cannot carry it."""
    return next((text for text in (tool.name, tool.type) if text and FUNCTION_NAME.fullmatch(text)), "unnamed")


def _tool(tool: ToolSpec, index: int, schemas: SchemaBudget) -> Tool:
    where = f"tools[{index}]"
    if tool.name is None or not FUNCTION_NAME.fullmatch(tool.name):
        raise InvalidRequest(f"{where}: a function needs a name of letters, digits and _.:-", param=f"{where}.name")
    parameters = tool.parameters or {}
    schemas.check(parameters, f"{where}.parameters")
    return Tool(tool.name, tool.description or "", parameters)


def _choice(choice: str | ToolChoiceSpec | None, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model may call, and whether it must call one."""
    match choice:
        case None | "auto":
            return tools, "auto"
        case "none":
            return tools, "none"
        case "required":
            return _required(tools)
        case ToolChoiceSpec(type="function"):
            if choice.name not in [tool.name for tool in tools]:
                raise InvalidRequest(
                    f"tool_choice names {choice.name!r}, which is not among tools", param="tool_choice.name"
                )
            return tools, NamedTool(choice.name or "")
        case ToolChoiceSpec(type="allowed_tools"):
            allowed = {tool.name for tool in choice.tools or ()}
            tools = tuple(tool for tool in tools if tool.name in allowed)
            return _required(tools) if choice.mode == "required" else (tools, "auto")
    raise Unsupported("tool_choice: only functions can be called here", param="tool_choice.type")


def _required(tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    if not tools:
        raise InvalidRequest("tool_choice is required, but there are no functions among tools", param="tool_choice")
    return tools, "required"


def _format(text_format: TextFormat | None, schemas: SchemaBudget) -> JsonFormat | None:
    if text_format is None or text_format.type == "text":
        return None
    if text_format.type == "json_object":
        return JsonFormat(None)
    if text_format.schema_ is None:
        raise InvalidRequest("text.format json_schema needs schema", param="text.format.schema")
    schemas.check(text_format.schema_, "text.format.schema")
    return JsonFormat(text_format.schema_)
