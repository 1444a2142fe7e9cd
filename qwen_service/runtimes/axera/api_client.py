"""The HTTP interface of main_api_*: four calls, one at a time, a new connection for each."""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_service.chat import Sampling
from qwen_service.errors import ProtocolError
from qwen_service.runtimes.local_http import HttpError, LocalHttp

TIMEOUT = 10.0  # seconds; each call only queues or reads something

# Defaults when neither the request nor the manifest says: Qwen's recommendation for chats.
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.8, 20
ANY_TOP_K = 1000  # stands for top_k 0, by which clients mean no limit

Body = Mapping[str, str | float]


class EngineBusy(Exception):
    """The program answered 400 {"error": "llm is running"}: somebody else's work runs."""


@dataclass(frozen=True, slots=True)
class Provided:
    done: bool
    # Output since the last poll. Our tokenizer decodes to empty texts, so this is the program's own messages.
    text: str


class AxApiClient:
    """The client. Raises ProtocolError for an answer outside the program's contract, and for no answer."""

    def __init__(self, port: int) -> None:
        self._http = LocalHttp(port, keep=False)  # its server closes idle connections without notice

    async def reset(self, key: str) -> None:
        """Returns when the reset is queued. EngineBusy when something runs."""
        await self._call("/api/reset", {"system_prompt": key})

    async def generate(self, key: str, sampling: Sampling) -> None:
        """Returns when the generation is queued. EngineBusy when something runs."""
        await self._call("/api/generate", {"prompt": key, **sampling_fields(sampling)})

    async def stop(self) -> None:
        await self._call("/api/stop")

    async def provider(self) -> Provided:
        answer = await self._call("/api/generate_provider")
        return Provided(bool(answer.get("done")), str(answer.get("response", "")))

    async def _call(self, path: str, body: Body | None = None) -> dict[str, object]:
        try:
            asked = self._http.get(path, TIMEOUT) if body is None else self._http.post(path, body, TIMEOUT)
            answer = await asked
        except HttpError as refusal:
            if refusal.status == 400 and b"running" in refusal.body:
                raise EngineBusy from None
            raise ProtocolError(f"The runtime answered {path} with {refusal}") from refusal
        except (OSError, ValueError) as error:
            raise ProtocolError(f"The runtime does not answer {path}: {error!r}") from error
        if not isinstance(answer, dict | None):
            raise ProtocolError(f"The runtime answered {path} with {str(answer)[:200]}")
        return answer or {}


def sampling_fields(sampling: Sampling) -> dict[str, float]:
    """The sampling fields of a request, all of them, because the program keeps each value until it gets another.

    Temperature 0 only turns scaling off there, so greedy sampling is top_k 1.
    """
    top_k = TOP_K if sampling.top_k is None else sampling.top_k or ANY_TOP_K
    return {
        "temperature": TEMPERATURE if sampling.temperature is None else sampling.temperature,
        "repetition_penalty": 1.0 if sampling.repeat_penalty is None else sampling.repeat_penalty,
        "top-p": TOP_P if sampling.top_p is None else sampling.top_p,
        "top-k": 1 if sampling.temperature == 0 else top_k,
    }
