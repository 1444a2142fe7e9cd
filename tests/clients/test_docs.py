"""The Python of docs/clients.md runs as it stands there, but for the address and the model.

test_openai_audio.py runs what has to do with speech.
"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "clients.md").read_text(encoding="utf-8")
ALL = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SNIPPETS = [snippet for snippet in ALL if "audio" not in snippet]


@pytest.fixture
def loop(careless: None) -> Iterator[None]:  # what the loop held is ignored, too
    """The thread's event loop: openai-agents takes it for run_sync, or makes one, and leaves it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=[snippet.splitlines()[0] for snippet in SNIPPETS])
def test_a_snippet_prints_an_answer(snippet: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = snippet.replace("http://localhost:8080", url).replace("qwen3-4b", "tiny")
    exec(compile(code, "docs/clients.md", "exec"), {})
    assert capsys.readouterr().out == "Hello there, friend.\n"
