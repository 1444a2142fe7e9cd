"""simonw's `llm` with an OpenAI-compatible endpoint, as its documentation sets one up."""

import subprocess
import sys
from pathlib import Path

import llm
import pytest

from tests.clients.conftest import EVENT

pytestmark = pytest.mark.usefixtures("careless")

MODELS = """\
- model_id: qwen
  model_name: tiny
  api_base: {url}/v1
  supports_schema: true
  supports_tools: true
"""


@pytest.fixture(autouse=True)
def configured(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(url=url))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))


def test_the_library_prompts_and_streams() -> None:
    model = llm.get_model("qwen")
    assert model.prompt("Say hello", stream=False).text() == "Hello there, friend."
    assert "".join(model.prompt("Say hello")) == "Hello there, friend."


def test_a_conversation() -> None:
    conversation = llm.get_model("qwen").conversation()
    assert conversation.prompt("Say hello").text() == "Hello there, friend."
    assert conversation.prompt("And again").text() == "Hello there, friend."


def test_a_chain_with_a_tool() -> None:
    def get_weather(city: str) -> str:
        """Get the weather."""
        return f"22 degrees ({city})"

    assert (
        llm.get_model("qwen").chain("Weather in Paris?", tools=[get_weather]).text()
        == "It is 22 degrees (Paris) in Paris."
    )


def test_a_schema() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert str(EVENT["name"]) in llm.get_model("qwen").prompt("Science fair on Friday", schema=schema).text()


def test_the_command_line() -> None:
    command = [sys.executable, "-m", "llm", "-m", "qwen", "--no-log", "Say hello"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "Hello there, friend.\n", done.stderr
