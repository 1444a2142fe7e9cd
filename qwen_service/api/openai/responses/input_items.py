"""Converts input items to messages. Adjacent text and calls of the assistant become one message: they were one reply.

Only then does the template write the conversation exactly as the model wrote it, so that the KV cache matches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen_service.api.openai.request import call_arguments
from qwen_service.api.openai.responses.wire import Item, Part
from qwen_service.api.pictures import from_url
from qwen_service.api.request_parts import picture_refused
from qwen_service.chat import Image, Message, ToolCall
from qwen_service.errors import InvalidRequest, Unsupported


@dataclass(slots=True)
class _Reply:
    """Collects the items of one reply of the assistant."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> Message:
        return Message("assistant", "".join(self.text), reasoning="".join(self.reasoning), tool_calls=tuple(self.calls))


class _Conversation:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reply: _Reply | None = None

    def add(self, item: Item, where: str) -> None:
        match item.type or "message":
            case "message" if item.role == "assistant":
                self._say(_content(item.content, f"{where}.content"))
            case "message":
                self._close(_said(item, where))
            case "reasoning":
                self._think(item, where)
            case "function_call":
                self._open_reply().calls.append(_call(item, where))
            case "function_call_output":
                self._close(_tool_result(item, where))
            case "item_reference":
                raise Unsupported(f"{where}: no item is stored here: send the item itself.", param=f"{where}.type")
            case other:
                raise Unsupported(f"{where}: items of type {other!r} are not supported here.", param=f"{where}.type")

    def finish(self) -> list[Message]:
        self._close()
        return self.messages

    def _say(self, text: str) -> None:
        if self._reply is not None and self._reply.text and not self._reply.calls:
            self._close()  # a second message begins a new reply; text after a call belongs to the same reply
        self._open_reply().text.append(text)

    def _think(self, item: Item, where: str) -> None:
        if self._reply is not None and (self._reply.text or self._reply.calls):
            self._close()  # a reply begins with its thoughts
        thoughts = _content(item.content, f"{where}.content") or _content(item.summary, f"{where}.summary")
        if thoughts:  # thoughts from other servers may be encrypted, and then empty
            self._open_reply().reasoning.append(thoughts)

    def _open_reply(self) -> _Reply:
        self._reply = self._reply or _Reply()
        return self._reply

    def _close(self, *following: Message) -> None:
        if self._reply is not None:
            self.messages.append(self._reply.message())
            self._reply = None
        self.messages += following


def messages_of(items: str | Sequence[Item]) -> list[Message]:
    """Convert all items. Raises a RequestError that names the faulty item."""
    if isinstance(items, str):
        return [Message("user", items)]
    conversation = _Conversation()
    for index, item in enumerate(items):
        conversation.add(item, f"input[{index}]")
    return conversation.finish()


def _said(item: Item, where: str) -> Message:
    if item.role is None:
        raise InvalidRequest(f"{where}: a message needs the field role.", param=f"{where}.role")
    role = "system" if item.role == "developer" else item.role
    place = f"{where}.content"
    return Message(
        role,
        _content(item.content, place, pictures=role == "user"),
        images=_images(item.content, place) if role == "user" else (),
    )


def _call(item: Item, where: str) -> ToolCall:
    if not item.call_id or not item.name:
        raise InvalidRequest(f"{where}: a function_call needs call_id and name.", param=where)
    return ToolCall(item.call_id, item.name, call_arguments(item.arguments, f"{where}.arguments"))


def _tool_result(item: Item, where: str) -> Message:
    if not item.call_id:
        raise InvalidRequest(f"{where}: a function_call_output needs call_id.", param=f"{where}.call_id")
    return Message("tool", _content(item.output, f"{where}.output"), tool_call_id=item.call_id)


def _content(content: str | Sequence[Part] | None, where: str, *, pictures: bool = False) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part, f"{where}[{index}]", pictures) for index, part in enumerate(content))


def _images(content: str | Sequence[Part] | None, where: str) -> tuple[Image, ...]:
    parts = [] if content is None or isinstance(content, str) else list(enumerate(content))
    images = []
    for index, part in parts:
        if part.type == "input_image":
            place = f"{where}[{index}].image_url"
            if part.image_url is None:
                raise InvalidRequest(
                    f"{place} is missing: send a data: URI, since this service keeps no files.", param=place
                )
            images.append(from_url(part.image_url, place))
    return tuple(images)


def _part(part: Part, where: str, pictures: bool) -> str:
    match part.type:
        case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
            if part.text is None:
                raise InvalidRequest(
                    f"{where}: a part of type {part.type} needs the field text.", param=f"{where}.text"
                )
            return part.text
        case "refusal":
            return part.refusal or ""
        case "input_image" if pictures:
            return ""  # _images reads it
        case "input_image":
            raise picture_refused(where)
        case other:
            raise Unsupported(f"{where}: parts of type {other!r} are not supported: send text.", param=f"{where}.type")
