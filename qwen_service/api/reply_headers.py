"""What the headers of a reply say about how it came to be; the same in every dialect."""

from collections.abc import Sequence

from qwen_service.chat import Started

LONGEST_LIST = 1000  # letters of a header's list: clients and proxies take 4 kB to 8 kB for all headers together


class ReplyHeaders:
    """Called when the headers go out; `started` is set by then, unless the reply is slow to begin."""

    def __init__(self, ignored_parameters: Sequence[str] = ()) -> None:
        self._ignored_parameters = tuple(ignored_parameters)  # that the dialect itself knows of
        self.started: Started | None = None

    def __call__(self) -> dict[str, str]:
        ignored, headers = self._ignored_parameters, {}
        if self.started is not None:
            headers["X-Served-By"] = self.started.served_by
            ignored += self.started.ignored_parameters
            if self.started.trimmed_messages:
                headers["X-Context-Trimmed-Messages"] = str(self.started.trimmed_messages)
            if self.started.moved_lines:
                headers["X-Prompt-Moved-Lines"] = str(self.started.moved_lines)
        if ignored:
            headers["X-Ignored-Parameters"] = _listed(ignored)
        return headers


def _listed(names: Sequence[str]) -> str:
    """All names, or as many as a header can have, and how many more there are."""
    shown = list(names)
    while len(", ".join(shown)) > LONGEST_LIST:
        shown.pop()
    more = len(names) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)
