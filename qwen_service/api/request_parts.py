"""Parts of a ChatRequest that all dialects convert and check alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.chat import NamedTool, Tool, ToolChoice
from qwen_service.errors import InvalidRequest, RequestTooLarge, Unsupported
from qwen_service.text.json_schema import SchemaBudget

NO_THINKING = ("none", "minimal")  # values of reasoning effort


def bound_messages(messages: Sequence[object], most: int, param: str = "messages") -> None:
    """Raise RequestTooLarge when there are more than the setting max_messages allows."""
    if len(messages) > most:
        raise RequestTooLarge(
            f"{param} has {len(messages)} entries; at most {most} are allowed (max_messages).", param=param
        )


def token_limit(*limits: int | None) -> int | None:
    """The smallest of several limits; a negative one, and 0, mean no limit."""
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or ()
    return tuple(text for text in stops if text)


def thinks(effort: str | None) -> bool | None:
    return None if effort is None else effort not in NO_THINKING


def make_tool(
    name: str, description: str | None, schema: Mapping[str, Any] | None, where: str, schemas: SchemaBudget
) -> Tool:
    """Make a tool. `where` names the field with its schema."""
    parameters = schema or {}
    schemas.check(parameters, where)
    return Tool(name, description or "", parameters)


def required_call(tools: Sequence[Tool], word: str = "required") -> ToolChoice:
    """The choice that the model must call some tool. `word` is the dialect's value of tool_choice for that."""
    if not tools:
        raise InvalidRequest(
            f"tool_choice is {word}, but tools has no function: name one, or drop it.", param="tool_choice"
        )
    return "required"


def named_call(name: str | None, tools: Sequence[Tool], param: str) -> ToolChoice:
    """The choice that the model must call this tool."""
    known = [tool.name for tool in tools]
    if name is None or name not in known:
        there = ", ".join(known) or "none"
        raise InvalidRequest(f"tool_choice names {name!r}, which is not among tools ({there}).", param=param)
    return NamedTool(name)


def picture_refused(where: str) -> Unsupported:
    """The error for a picture in a message that is not the user's."""
    return Unsupported(f"{where}: only messages of the user can have pictures; send text here.", param=f"{where}.type")
