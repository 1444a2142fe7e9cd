"""Messages, tools and the thinking switch -> prompt, by the model's own Jinja template.

The result is PromptParts: text that is never parsed for special tokens, and the ids of the special tokens that
the template itself wrote. A special token inside a message, `<|im_end|>` say, stays text.

The template is run as transformers runs it (trim_blocks, lstrip_blocks, loop controls, tojson without escapes,
raise_exception, strftime_now), in Jinja's immutable sandbox.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen_service.chat import Message, Tool, ToolCall
from qwen_service.errors import InvalidRequest

# What a template's special tokens can look like; which of these exist, the tokenizer knows.
SPECIAL_TOKEN_SHAPE = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,32}\]")
# What the model itself writes in its replies and may therefore come back in assistant messages.
OUTPUT_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_GUARDS = range(0xF0000, 0xF0400)  # private-use characters


class ChatTemplate:
    """`special_ids` maps each special token the template may write to its id."""

    def __init__(
        self, source: str, special_ids: Mapping[str, int], *, bos_token: str = "", eos_token: str = ""
    ) -> None:
        self.source = source
        self.special_ids = dict(special_ids)
        self._globals = {"bos_token": bos_token, "eos_token": eos_token}
        self._template = _environment().from_string(source)
        self._special = _alternatives(self.special_ids)
        self._control = _alternatives(name for name in self.special_ids if name not in OUTPUT_TAGS)

    @property
    def supports_tools(self) -> bool:
        return "tools" in self.source

    @property
    def supports_thinking(self) -> bool:
        return "enable_thinking" in self.source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[str | int]:
        """Raises InvalidRequest where the template itself refuses the conversation."""
        guard = _unused_character(messages, tools)
        text = self._run(
            [_as_dict(message, lambda string, role: self._protect(string, role, guard)) for message in messages],
            [_map_strings(_tool_dict(tool), lambda string: self._protect(string, "user", guard)) for tool in tools],
            {**(kwargs or {}), **({} if thinking is None else {"enable_thinking": thinking})},
        )
        return self._split(text, guard)

    def render_after(
        self,
        messages: Sequence[Message],
        index: int,
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[str | int] | None:
        """What the template writes after the reply `messages[index]`; None if that cannot be told.

        This is what a KV cache that ends with that reply must be given to hold the whole conversation.
        """
        mark = f"reply {secrets.token_hex(8)} ends here"
        marked = [*messages[:index], Message("assistant", mark), *messages[index + 1 :]]
        parts = self.render(marked, tools=tools, thinking=thinking, kwargs=kwargs)
        holders = [i for i, part in enumerate(parts) if isinstance(part, str) and mark in part]
        if len(holders) != 1:
            return None
        after = str(parts[holders[0]]).partition(mark)[2]
        rest = parts[holders[0] + 1 :]
        return [after, *rest] if after else rest

    def split_raw(self, text: str) -> list[str | int]:
        """A prompt that a client rendered itself: special tokens in it are meant."""
        return self._split(text, guard="")

    def _run(self, messages: list[dict[str, Any]], tools: list[Any], kwargs: Mapping[str, Any]) -> str:
        try:
            return self._template.render(
                **self._globals, **kwargs, messages=messages, tools=tools or None, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except TypeError as error:
            raise InvalidRequest(
                f"chat_template_kwargs cannot be used: {error}", param="chat_template_kwargs"
            ) from error

    def _protect(self, text: str, role: str, guard: str) -> str:
        pattern = self._control if role == "assistant" else self._special
        return pattern.sub(lambda match: match[0][0] + guard + match[0][1:], text) if pattern else text

    def _split(self, text: str, guard: str) -> list[str | int]:
        return list(self._pieces(text, guard))

    def _pieces(self, text: str, guard: str) -> Iterator[str | int]:
        position = 0
        for match in self._special.finditer(text) if self._special else ():
            if match.start() > position:
                yield _without(text[position : match.start()], guard)
            yield self.special_ids[match[0]]
            position = match.end()
        if position < len(text):
            yield _without(text[position:], guard)


def _without(text: str, guard: str) -> str:
    return text.replace(guard, "") if guard else text


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=bool(options.get("sort_keys")))


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _alternatives(tokens: Iterator[str] | Mapping[str, int]) -> re.Pattern[str] | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _as_dict(message: Message, protect: Any) -> dict[str, Any]:
    """The shape that templates written for transformers expect: content is a string, arguments are an object."""
    role = message.role
    entry: dict[str, Any] = {"role": role, "content": protect(message.content, role)}
    if message.reasoning:
        entry["reasoning_content"] = protect(message.reasoning, role)
    if message.tool_calls:
        entry["tool_calls"] = [
            _map_strings(_call_dict(call), lambda string: protect(string, "user")) for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        entry["name"] = protect(message.name, "user")
    return entry


def _call_dict(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool_dict(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _map_strings(value: Any, change: Any) -> Any:
    match value:
        case str():
            return change(value)
        case Mapping():
            return {
                change(key) if isinstance(key, str) else key: _map_strings(item, change) for key, item in value.items()
            }
        case list() | tuple():
            return [_map_strings(item, change) for item in value]
        case _:
            return value


def _unused_character(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    texts = [text for message in messages for text in (message.content, message.reasoning, message.name or "")]
    texts += [call.arguments for message in messages for call in message.tool_calls]
    texts += [json.dumps(_tool_dict(tool), ensure_ascii=False) for tool in tools]
    used = set().union(*(text for text in texts if not text.isascii()))
    for code in _GUARDS:
        if chr(code) not in used:
            return chr(code)
    raise InvalidRequest("messages contain a whole block of private-use characters", param="messages")
