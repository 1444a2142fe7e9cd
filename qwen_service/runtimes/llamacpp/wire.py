"""llama.cpp's native /completion: makes request bodies and reads events. IO-free."""

import base64
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import orjson

from qwen_service.chat import IMAGE_PLACE, Image, Sampling, TokenLogprob
from qwen_service.errors import InvalidRequest, PromptTooLong, ProtocolError, QueueFull, ServiceError
from qwen_service.runtime import Capabilities, Piece, Prefill, Spelled

CAPABILITIES = Capabilities(
    sampling=frozenset(Sampling.__dataclass_fields__),
    constrained_output=True,
    grammars=True,
    logprobs=True,
    warms="head",
)
_SAME_NAME = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty")
_LAST_EVENT = ("stop", "stop_type", "content", "tokens", "tokens_predicted")  # otherwise it repeats prompt and settings
_FINISH_REASONS: Mapping[str, Literal["stop", "length"]] = {"eos": "stop", "word": "stop", "limit": "length"}
BREAK = "\u2060"  # word joiner
_OUTGROWN = "Context size has been exceeded."  # llama.cpp has no error type for this
_RANDOM_SEED = 0xFFFFFFFF


def completion_body(token_ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": token_ids,
        "stream": True,
        "cache_prompt": True,
        "return_progress": True,  # also makes it notice during the prefill that we have left
        "return_tokens": True,
        "response_fields": _LAST_EVENT,
        "n_predict": -1 if sampling.max_tokens is None else sampling.max_tokens,
    }
    body |= {name: value for name in _SAME_NAME if (value := getattr(sampling, name)) is not None}
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _RANDOM_SEED
    if sampling.logit_bias:
        body["logit_bias"] = list(sampling.logit_bias.items())
    if sampling.top_logprobs is not None:
        body["n_probs"] = max(1, sampling.top_logprobs)
    if sampling.grammar is not None:
        body["grammar"] = sampling.grammar
    elif sampling.json_schema is not None:
        body["json_schema"] = sampling.json_schema
    return body


def prompt_with_pictures(
    spelled: Iterable[Spelled], images: Iterable[Image], control: Collection[str], marker: str, bos_token: str
) -> dict[str, Any]:
    """Write a prompt with pictures in llama.cpp's form: text with a marker for each picture, in order.

    llama.cpp searches this text for special tokens, and adds the first token itself. Names of `control`, and the marker, that
    a person wrote are split by an invisible character.
    """
    unwanted = re.compile("|".join(map(re.escape, sorted({*control, marker}, key=len, reverse=True))))
    text = "".join(
        part.text if part.special else unwanted.sub(lambda found: found[0][0] + BREAK + found[0][1:], part.text)
        for part in spelled
    )
    text = text.removeprefix(bos_token).replace(IMAGE_PLACE, marker)
    data = [base64.b64encode(image.data).decode() for image in images]
    return {"prompt_string": text.encode(errors="replace").decode(), "multimodal_data": data}


class CompletionReader:
    """Turns events into pieces. Counts come from the engine's running total, so they are exact."""

    def __init__(self, top_logprobs: int | None) -> None:
        self._top_logprobs = top_logprobs
        self._tokens = 0
        self.finished = False

    def feed(self, data: bytes) -> Prefill | Piece:
        try:
            event = orjson.loads(data)
            progress = event.get("prompt_progress")
            if progress is not None:
                return Prefill(progress["total"], progress["cache"])
            return self._piece(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"llama.cpp sent an event that cannot be read: {data[:300]!r}") from error

    def _piece(self, event: dict[str, Any]) -> Piece:
        if "error" in event:
            raise refusal(500, event["error"])
        new = event["tokens_predicted"] - self._tokens
        self._tokens += new
        self.finished = event["stop"]
        return Piece(
            event["content"],
            new,
            tuple(event["tokens"]),
            () if self._top_logprobs is None else self._logprobs(event),
            _FINISH_REASONS[event["stop_type"]] if self.finished else None,
        )

    def _logprobs(self, event: dict[str, Any]) -> tuple[TokenLogprob, ...]:
        """The logprobs of tokens with text; the end of the reply is not one."""
        entries = event.get("completion_probabilities", ())
        return tuple(_logprob(entry, self._top_logprobs or 0) for entry in entries if entry["bytes"])


def _logprob(entry: Mapping[str, Any], top: int) -> TokenLogprob:
    alternatives = entry.get("top_logprobs", ())[:top]
    return TokenLogprob(
        entry["token"], bytes(entry["bytes"]), entry["logprob"], tuple(_logprob(other, 0) for other in alternatives)
    )


def refusal(status: int, error: Any) -> ServiceError:
    """Turn the engine's error object into an error of the service."""
    details = error if isinstance(error, dict) else {}
    message = str(details.get("message", error))
    if details.get("type") == "exceed_context_size_error":
        return PromptTooLong(f"The prompt does not fit into the context: {message}", param="messages")
    if message == _OUTGROWN:
        return QueueFull("The requests that ran at once have outgrown the context together. Try again.", retry_after=1)
    if status == 400:
        return InvalidRequest(f"llama.cpp refuses the request: {message}")
    return ProtocolError(f"llama.cpp answered with an error ({status}): {message}")
