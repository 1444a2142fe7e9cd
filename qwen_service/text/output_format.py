"""The tags that a model family writes in its replies."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The opening and closing tags a model writes; None where it has no such thing."""

    reasoning: tuple[str, str] | None = None
    tool_call: tuple[str, str] | None = None

    @classmethod
    def of_template(cls, source: str) -> "OutputFormat":
        """Read the tags from the chat template, which contains the tags that its model writes."""
        return cls(
            reasoning=("<think>", "</think>") if "</think>" in source else None,
            tool_call=("<tool_call>", "</tool_call>") if "<tool_call>" in source else None,
        )
