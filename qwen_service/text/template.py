"""Renders messages, tools and the thinking switch to a prompt, by the model's own Jinja template.

The result is PromptParts: text, which is never parsed for special tokens, and the ids of the special tokens that
the template itself wrote. A special token inside a message, such as `<|im_end|>`, stays text.

The template is run as transformers runs it (trim_blocks, lstrip_blocks, loop controls, tojson without escapes,
raise_exception, strftime_now), in Jinja's immutable sandbox.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any, NoReturn, TypedDict, Unpack

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen_service.chat import Message, Role, Tool, ToolCall
from qwen_service.errors import InvalidRequest

# The forms of special tokens in templates; the tokenizer knows which of them exist.
SPECIAL_TOKEN_SHAPE = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,32}\]")
# Tags that the model writes in replies, so they may come back in assistant messages.
OUTPUT_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


class Shown(TypedDict, total=False):
    """What a template is given beside the messages. `kwargs`: the client's own, for its variables."""

    tools: Sequence[Tool]
    thinking: bool | None
    kwargs: Mapping[str, Any] | None


_GUARDS = range(0xF0000, 0xF0400)  # private-use characters
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})

Change = Callable[[str], str]


class ChatTemplate:
    """`special_ids` maps each special token that the template may write to its id."""

    def __init__(
        self, source: str, special_ids: Mapping[str, int], *, bos_token: str = "", eos_token: str = ""
    ) -> None:
        self.source = source
        self.special_ids = dict(special_ids)
        self._globals = {"bos_token": bos_token, "eos_token": eos_token}
        self._template = _environment().from_string(source)
        self._special = _alternatives(self.special_ids)
        self._control = _alternatives(name for name in self.special_ids if name not in OUTPUT_TAGS)

    def __reduce__(self) -> tuple[Callable[..., "ChatTemplate"], tuple[object, ...]]:
        """It travels to another machine as what it was made of."""
        return _from_parts, (self.source, self.special_ids, self._globals)

    @property
    def supports_tools(self) -> bool:
        return "tools" in self.source

    @property
    def supports_thinking(self) -> bool:
        return "enable_thinking" in self.source

    @cached_property
    def takes_late_system(self) -> bool:
        """Whether the template shows later system messages, each in its place."""
        marks = [_mark() for _ in range(4)]
        roles: tuple[Role, ...] = ("system", "user", "system", "user")
        messages = [Message("system", "first"), *map(Message, roles, marks)]
        messages.insert(3, Message("assistant", "reply"))
        try:
            text = self.spell(self.render(messages))
        except InvalidRequest:
            return False
        places = [text.find(mark) for mark in marks]
        return places == sorted(places) and places[0] >= 0

    @cached_property
    def _reads_parts_only(self) -> bool:
        """Whether the template loses a content that is a string: those of some models with eyes read lists of parts."""
        mark = _mark()
        return mark not in self._probe(mark) and mark in self._probe([{"type": "text", "text": mark}])

    def _probe(self, content: object) -> str:
        messages = [{"role": "user", "content": content}]
        try:
            return self._template.render(**self._globals, messages=messages, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError):  # `render` tells whom it concerns
            return ""

    def render(self, messages: Sequence[Message], **shown: Unpack[Shown]) -> list[str | int]:
        """Render a conversation. Raises InvalidRequest when the template refuses it."""
        kwargs = shown.get("kwargs") or {}
        _refuse_reserved(kwargs)
        try:
            return self._render(messages, shown.get("tools", ()), shown.get("thinking"), kwargs)
        except TemplateError as error:
            text = f"The model's chat template refuses these messages: {error.message}"
            raise InvalidRequest(text, param="messages") from error
        except RecursionError:
            raise InvalidRequest("Tools or arguments are nested too deeply.", param="messages") from None
        except (TypeError, ValueError, OverflowError) as error:  # from expressions of the template
            raise InvalidRequest(
                f"The model's chat template cannot render these messages: {error}", param="messages"
            ) from error

    def render_open(self, messages: Sequence[Message], **shown: Unpack[Shown]) -> list[str | int]:
        """Render up to the end of the last message, the assistant's, so that the model continues it."""
        mark, last = _mark(), messages[-1]
        marked = [*messages[:-1], replace(last, content=last.content + mark)]
        cut = _cut(self.render(marked, **shown), mark)
        if cut is None:
            raise InvalidRequest(
                "The model's chat template cannot leave the last message open, so the model cannot continue it.",
                param="messages",
            )
        return cut[0]

    def render_after(self, messages: Sequence[Message], index: int, **shown: Unpack[Shown]) -> list[str | int] | None:
        """Render the text that comes after the reply `messages[index]`; None if that cannot be determined.

        A KV cache that ends with that reply needs just this text to hold the whole conversation.
        """
        mark = _mark()
        marked = [*messages[:index], Message("assistant", mark), *messages[index + 1 :]]
        cut = _cut(self.render(marked, **shown), mark)
        return None if cut is None else cut[1]

    def spell(self, parts: Sequence[str | int]) -> str:
        """Write the prompt as text, with special tokens by name."""
        names = {token_id: name for name, token_id in self.special_ids.items()}
        return "".join(names.get(part, "") if isinstance(part, int) else part for part in parts)

    def split_raw(self, text: str) -> list[str | int]:
        """Split a prompt that the client rendered itself: special tokens in it are real."""
        return self._split(text, guard="")

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], thinking: bool | None, kwargs: Mapping[str, Any]
    ) -> list[str | int]:
        guard = _unused_character(messages, tools, kwargs)
        plain = partial(_guarded, pattern=self._special, guard=guard)
        reply = partial(_guarded, pattern=self._control, guard=guard)
        text = self._template.render(
            **self._globals,
            **_map_strings({**kwargs, **({} if thinking is None else {"enable_thinking": thinking})}, plain),
            messages=[self._with_content(_as_dict(message, plain, reply)) for message in messages],
            tools=[_map_strings(tool_dict(tool), plain) for tool in tools] or None,
            add_generation_prompt=True,
        )
        return self._split(text, guard)

    def _with_content(self, entry: dict[str, Any]) -> dict[str, Any]:
        return entry | {"content": [{"type": "text", "text": entry["content"]}]} if self._reads_parts_only else entry

    def _split(self, text: str, guard: str) -> list[str | int]:
        parts: list[str | int] = []
        position = 0
        for match in self._special.finditer(text) if self._special else ():
            parts += [_without(text[position : match.start()], guard), self.special_ids[match[0]]]
            position = match.end()
        return [part for part in (*parts, _without(text[position:], guard)) if part != ""]


def _mark() -> str:
    """Make a text that does not occur in the conversation."""
    return f"reply {secrets.token_hex(8)} ends here"


def _cut(parts: Sequence[str | int], mark: str) -> tuple[list[str | int], list[str | int]] | None:
    """The text before and after the mark; None unless the mark occurs exactly once."""
    holders = [(at, part) for at, part in enumerate(parts) if isinstance(part, str) and mark in part]
    if len(holders) != 1:
        return None
    at, holder = holders[0]
    before, _, after = holder.partition(mark)
    return [*parts[:at], *([before] if before else [])], [*([after] if after else []), *parts[at + 1 :]]


def _guarded(text: str, pattern: re.Pattern[str] | None, guard: str) -> str:
    """Put the guard inside everything that looks like a special token."""
    return pattern.sub(lambda match: match[0][0] + guard + match[0][1:], text) if pattern else text


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


def _refuse_reserved(kwargs: Mapping[str, Any]) -> None:
    if taken := sorted(_RESERVED & kwargs.keys()):
        raise InvalidRequest(
            f"chat_template_kwargs may not set {taken[0]}: the service sets it.", param="chat_template_kwargs"
        )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _alternatives(tokens: Iterator[str] | Mapping[str, int]) -> re.Pattern[str] | None:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _as_dict(message: Message, plain: Change, reply: Change) -> dict[str, Any]:
    """A message in the shape that templates for transformers expect: content is a string, arguments are an object."""
    change = reply if message.role == "assistant" else plain
    entry: dict[str, Any] = {"role": message.role, "content": change(message.content)}
    if message.reasoning:
        entry["reasoning_content"] = change(message.reasoning)
    if message.tool_calls:
        entry["tool_calls"] = [_map_strings(_call_dict(call), plain) for call in message.tool_calls]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = plain(message.tool_call_id)
    if message.name is not None:
        entry["name"] = plain(message.name)
    return entry


def _call_dict(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def tool_dict(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _map_strings(value: Any, change: Change) -> Any:
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


def _unused_character(messages: Sequence[Message], tools: Sequence[Tool], kwargs: Mapping[str, Any]) -> str:
    texts = [text for message in messages for text in (message.content, message.reasoning, message.name or "")]
    texts += [call.arguments for message in messages for call in message.tool_calls]
    texts += [json.dumps([tool_dict(tool) for tool in tools] + [kwargs], ensure_ascii=False, default=dict)]
    used = set().union(*(text for text in texts if not text.isascii()))
    for code in _GUARDS:
        if chr(code) not in used:
            return chr(code)
    raise InvalidRequest(
        "The messages contain all 1024 private-use characters from U+F0000 on; leave one of them out.", param="messages"
    )


def _from_parts(source: str, special_ids: Mapping[str, int], tokens: Mapping[str, str]) -> ChatTemplate:
    return ChatTemplate(source, special_ids, **tokens)
