"""Estimates the length of a text for a model whose tokenizer is inside the engine. It must not underestimate."""

from qwen_service.runtime import PromptParts

BYTES_PER_TOKEN = 3  # English has 4 to 5, Chinese about 3 to 4
ROUGH_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %} ....\n{% endfor %}"
)


class RoughTokenizer:
    async def encode(self, parts: PromptParts) -> list[int]:
        """One number for each few bytes. Texts with the same beginning give the same first numbers."""
        text = b"".join(
            part.to_bytes(BYTES_PER_TOKEN, "big") if isinstance(part, int) else part.encode("utf-8", "replace")
            for part in parts
        )
        pieces = range(0, len(text), BYTES_PER_TOKEN)
        return [int.from_bytes(text[start : start + BYTES_PER_TOKEN], "big") for start in pieces]
