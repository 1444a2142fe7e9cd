"""What the KV cache of a main_api_* program holds, and how a prompt gets into it with the least computation. IO-free.

The cache can only grow, or be reset to other ids; a turn appends its `diff` and the reply. The program computes steps
of 128 ids and takes a diff only while (held + diff), rounded up to whole steps after what is held, stays within its
largest prefill group. Beyond that it refuses everything until a reset, so a plan never goes there.
"""

from dataclasses import dataclass

from qwen_service.errors import PromptTooLong, Unsupported

CHUNK = 128  # ids of one prefill step

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """First reset to these ids, unless that is empty; then prefill `diff`, which never is."""

    reset: Ids
    diff: Ids
    cached: int  # ids of the prompt that are held already


class KvCache:
    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._held: Ids = ()
        self._known = False

    @property
    def held(self) -> Ids | None:
        """None: in doubt."""
        return self._held if self._known else None

    def hold(self, ids: Ids) -> None:
        self._held, self._known = ids, True

    def doubt(self) -> None:
        """After a stop or an error: what is held is not known until the next reset."""
        self._held, self._known = (), False

    def reusable(self, prompt: Ids) -> int:
        count = len(self._held)
        if not self._known or not count < len(prompt) or prompt[:count] != self._held:
            return 0
        return count if len(prompt) - count <= self._room(count) else 0

    def plan(self, prompt: Ids) -> Plan:
        if len(prompt) > self._largest:
            raise PromptTooLong(f"The prompt has {len(prompt)} tokens; the engine takes {self._largest}.")
        if len(prompt) < 2:
            raise Unsupported("This engine needs a prompt of two tokens or more.", param="prompt")
        if count := self.reusable(prompt):
            return Plan((), prompt[count:], count)
        # A reset to whole steps costs nothing extra: reset and diff together take as many steps as the prompt has.
        # The reset is kept short, because the rest can be stopped and a reset cannot.
        count = CHUNK if len(prompt) > CHUNK else 1
        return Plan(prompt[:count], prompt[count:], 0)

    def _room(self, held: int) -> int:
        return (self._largest - held) // CHUNK * CHUNK
