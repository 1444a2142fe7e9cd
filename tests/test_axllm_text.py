import shutil
from pathlib import Path

import pytest

from qwen_service.chat import Message, Tool, ToolCall
from qwen_service.errors import Unsupported
from qwen_service.runtimes.axllm_text import EstimatedTokenizer, read_text_tools
from qwen_service.tokenizer import LocalTokenizer

TALK = (
    Message("system", "Answer in one sentence, and name your source."),
    Message("user", "Wie hoch ist der Kölner Dom, und wie lange hat man an ihm gebaut?"),
    Message("assistant", "", tool_calls=(ToolCall("c1", "search", '{"query": "Kölner Dom"}'),)),
    Message("tool", "157 Meter, 632 Jahre", tool_call_id="c1"),
)
TOOLS = (Tool("search", "Searches an encyclopedia", {"type": "object", "properties": {"query": {"type": "string"}}}),)


async def test_without_a_tokenizer_a_conversation_is_estimated_a_little_too_long(
    tmp_path: Path, qwen_tokenizer_folder: Path
) -> None:
    tokenizer, template = read_text_tools(tmp_path)
    estimated = len(await tokenizer.encode(template.render(TALK)))
    model = LocalTokenizer(qwen_tokenizer_folder)
    real = len(model.encode_now([message.content for message in TALK])) + 5 * len(TALK)
    assert real <= estimated <= 2.5 * real


async def test_the_stand_in_template_shows_what_the_model_can_do(tmp_path: Path) -> None:
    _, template = read_text_tools(tmp_path)
    assert template.supports_tools
    assert template.supports_thinking
    longer = "".join(map(str, template.render(TALK, tools=TOOLS)))
    assert "Searches an encyclopedia" in longer


async def test_a_folders_own_tokenizer_and_template_are_used(tmp_path: Path, qwen_tokenizer_folder: Path) -> None:
    shutil.copytree(qwen_tokenizer_folder, tmp_path / "tokenizer")
    tokenizer, template = read_text_tools(tmp_path)
    assert isinstance(tokenizer, LocalTokenizer)
    assert template.source == tokenizer.chat_template


async def test_an_estimate_cannot_be_turned_back() -> None:
    with pytest.raises(Unsupported):
        await EstimatedTokenizer().decode([0])
