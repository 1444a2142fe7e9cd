"""Knows what the KV cache of a main_api_* program holds, and plans the cheapest way to a prompt. IO-free.

The cache can only grow, or be reset to other ids; a turn appends its `diff` and the reply. The program computes steps
of 128 ids and takes a diff only while (held + diff), rounded up to whole steps after what is held, stays within its
largest prefill group. Beyond that it refuses everything until a reset, so a plan never goes there.
"""

from dataclasses import dataclass

from qwen_service.errors import PromptTooLong, Unsupported
from qwen_service.runtimes.axera.reply_tokens import ReplyTokens

CHUNK = 128  # ids of one prefill step

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps to a prompt: reset to the ids of `reset`, unless None; then prefill `diff`, which is never empty."""

    reset: Ids | None
    diff: Ids
    cached: int  # ids of the prompt that the cache already holds


@dataclass(slots=True)
class Stop:
    """How a reply was stopped. `exactly_after`: the number of ids decoded when the program was stopped at the gate.

    `loosely`: it was stopped at another moment, perhaps in the middle of a step.
    """

    exactly_after: int | None = None
    loosely: bool = False


class KvCache:
    """The cache. `from_nothing`: the longest prompt that may follow a reset to no ids.

    Such a reset computes nothing, so the diff is the whole prompt, whose length the program does not check.
    """

    def __init__(self, largest: int, *, from_nothing: int = 0) -> None:
        self._largest = largest
        self._from_nothing = min(from_nothing, largest // CHUNK * CHUNK)
        self._held: Ids = ()
        self._known = False
        self._replied = False

    @property
    def held(self) -> Ids | None:
        """The ids that the cache holds; None: unknown."""
        return self._held if self._known else None

    @property
    def after_stopped_prefill(self) -> Ids | None:
        """The ids that the cache holds after a stopped prefill of the next turn; None: unknown.

        The program then takes the length of its cache from the last decode step that it computed. That is the
        right one only if there was such a step since the last reset.
        """
        return self._held if self._known and self._replied else None

    def reset_to(self, ids: Ids) -> None:
        self._held, self._known, self._replied = ids, True, False

    def hold(self, ids: Ids) -> None:
        """Note the ids that the cache holds after a reply."""
        self._held, self._known, self._replied = ids, True, True

    def invalidate(self) -> None:
        """Mark the content as unknown until the next reset: after some stops, and after an error."""
        self._held, self._known, self._replied = (), False, False

    def reusable(self, prompt: Ids) -> int:
        count = len(self._held)
        return count if self._can_continue(prompt) else 0

    def plan(self, prompt: Ids) -> Plan:
        if len(prompt) > self._largest:
            raise PromptTooLong(f"The prompt has {len(prompt)} tokens; the engine takes at most {self._largest}.")
        least = 1 if self._from_nothing else 2
        if len(prompt) < least:
            raise Unsupported(f"This engine needs a prompt of {least} tokens or more.", param="prompt")
        if self._can_continue(prompt):
            return Plan(None, prompt[len(self._held) :], len(self._held))
        if len(prompt) <= self._from_nothing:
            return Plan((), prompt, 0)
        # A reset to whole steps costs nothing extra: reset and diff together take as many steps as the prompt has.
        # The reset is kept short, because the rest can be stopped and a reset cannot.
        count = CHUNK if len(prompt) > CHUNK else 1
        return Plan(prompt[:count], prompt[count:], 0)

    def _can_continue(self, prompt: Ids) -> bool:
        count = len(self._held)
        if not self._known or not count < len(prompt) or prompt[:count] != self._held:
            return False
        most = (self._largest - count) // CHUNK * CHUNK if count else self._from_nothing
        return len(prompt) - count <= most


def held_after(prompt: Ids, tokens: ReplyTokens, stop: Stop, *, after_stopped_prefill: Ids | None) -> Ids | None:
    """The ids that the cache holds after a reply to `prompt`; None: unknown.

    The last id of a reply enters the cache in the step that finds the end. A stopped reply lacks that step.
    """
    ids = tuple(tokens.ids)
    if not tokens.ended or not ids:
        return None
    if stop.loosely:
        # An only id comes from the prefill that was broken off.
        return after_stopped_prefill if tokens.cut and len(ids) == 1 else None
    if stop.exactly_after == len(ids):
        return (*prompt, *ids[:-1])
    if tokens.cut or (stop.exactly_after or 0) in range(1, len(ids)):
        return None
    return (*prompt, *ids)  # it ended by itself; a late stop changed nothing
