"""Text tools for a model of axllm, whose folder may have no tokenizer that we can read.

axllm renders and tokenizes by itself. All that is needed here is how long a conversation is, to fit it into the
context; without the real tokenizer that is an estimate, and so is usage.prompt_tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from qwen_service.chat_template import ChatTemplate
from qwen_service.errors import Unsupported
from qwen_service.runtimes.base import PromptParts, Tokenizer
from qwen_service.tokenizer import LocalTokenizer

BYTES_PER_TOKEN = 3.0  # English has about 4.4, German 3.3, Chinese 4; code 3: rather too many tokens than too few

# About as much as Qwen3's own template writes, with the same switches and tags.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{{ tools | tojson }}\
{{ '\\nFor each call return <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}\
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- if not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"""


class EstimatedTokenizer:
    """As many ids as a text has tokens, about; they mean nothing."""

    async def encode(self, parts: PromptParts) -> list[int]:
        texts = [part for part in parts if isinstance(part, str)]
        count = sum(math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN) for text in texts)
        return [0] * (count + len(parts) - len(texts))

    async def decode(self, token_ids: Sequence[int]) -> str:  # noqa: ARG002  # of the protocol
        raise Unsupported("The tokenizer of this model is inside axllm, which does not offer it.")


def read_text_tools(folder: Path) -> tuple[Tokenizer, ChatTemplate]:
    """The model's own where the folder has them; a LocalTokenizer then also counts replies exactly."""
    found = sorted(folder.glob("**/tokenizer.json"))
    if not found:
        return EstimatedTokenizer(), ChatTemplate(TEMPLATE, {})
    tokenizer = LocalTokenizer(found[0].parent)
    return tokenizer, ChatTemplate(tokenizer.chat_template or TEMPLATE, tokenizer.special_ids)
