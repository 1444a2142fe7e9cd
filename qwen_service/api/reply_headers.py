"""What the headers of a reply say about how it came to be; the same in every dialect."""

from collections.abc import Sequence

from qwen_service.chat import Started


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
            headers["X-Ignored-Parameters"] = ", ".join(ignored)
        return headers
