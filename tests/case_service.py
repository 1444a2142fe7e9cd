"""A whole service around a scripted engine: a model named `tiny` with Qwen's tags and a tokenizer of letters."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from qwen_service.app import create_app
from qwen_service.chat import Sampling, TokenLogprob
from qwen_service.engine import BringUp, Engine, ModelText
from qwen_service.errors import Died
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtime import Capabilities, Limits, LoadProgress, Piece, Prefill, Prompt
from qwen_service.settings import Settings
from qwen_service.text.output_parser import OutputFormat
from qwen_service.text.template import ChatTemplate
from tests.fakes import LetterTokenizer, ScriptedRuntime

SAMPLING_FIELDS = frozenset({"temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"})
ENGINES = {
    "llama.cpp": Capabilities(
        SAMPLING_FIELDS | {"repeat_penalty", "logit_bias"}, constrained_output=True, grammars=True, logprobs=True
    ),
    "card": Capabilities(frozenset({"temperature", "top_p", "top_k"})),
}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
TEMPLATE = """\
{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{% for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""
PLAIN_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@dataclass
class Script:
    """What the engine says: one reply after the other, a word at a time. `dies_after` so many words."""

    replies: list[str] = field(default_factory=lambda: ["Hello there"])
    engine: str = "llama.cpp"
    template: str = TEMPLATE
    dies_after: int | None = None
    context: int = 600
    prompts: list[Prompt] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    def play(self, replies: list[str]) -> None:
        """From the start, with other replies."""
        self.replies = replies
        self.prompts.clear()
        self.samplings.clear()

    def reply_to(self, prompt: Prompt, sampling: Sampling) -> str:
        del prompt, sampling
        return self.replies[min(len(self.prompts), len(self.replies) - 1)]

    async def __call__(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        reply = self.reply_to(prompt, sampling)
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        yield Prefill(len(prompt.token_ids), 2)
        words = re.findall(r"\S+\s*|\s+", reply)
        for count, word in enumerate(words[: sampling.max_tokens]):
            if count == self.dies_after:
                raise Died("the engine's process ended: out of memory")
            logprobs = (_logprob(word, sampling.top_logprobs),) if sampling.top_logprobs is not None else ()
            yield Piece(word, 1, (ord(word[0]),), logprobs)
            await asyncio.sleep(0)
        cut = sampling.max_tokens is not None and len(words) > sampling.max_tokens
        yield Piece(finish_reason="length" if cut else "stop")


@asynccontextmanager
async def scripted_service(folder: Path, script: Script, settings: Mapping[str, Any]) -> AsyncIterator[FastAPI]:
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "tiny.gguf").write_bytes(b"GGUF")
    (folder / "models" / "other.gguf").write_bytes(b"GGUF")
    given: dict[str, Any] = {"model": "tiny", "models_dir": folder / "models", "state_dir": folder / "state"}

    def loaders(model: InstalledModel, _settings: Settings, _machine: Machine) -> dict[str, BringUp]:
        async def bring_up(progress: LoadProgress) -> Engine:
            limits = Limits(context=script.context, prompt=script.context - 1, slots=4)
            runtime = ScriptedRuntime(script, limits=limits)
            runtime.capabilities = ENGINES[script.engine]
            template = ChatTemplate(script.template, {name: 0xE000 + n for n, name in enumerate(SPECIAL)})
            return Engine(
                runtime, limits, ModelText(LetterTokenizer(), template, OutputFormat.of_template(template.source))
            )

        return {model.name: bring_up}

    app = create_app(Settings(**given | dict(settings)), loaders=loaders)
    async with app.router.lifespan_context(app):
        yield app


def _logprob(word: str, top: int) -> TokenLogprob:
    others = tuple(TokenLogprob(f"{n}", str(n).encode(), -1.0 - n) for n in range(top))
    return TokenLogprob(word, word.encode(), -0.5, others)
