"""Pictures for llama.cpp: the prompt as it wants it, and a real engine that is given one."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from qwen_service.app import create_app
from qwen_service.chat import IMAGE_PLACE, Image
from qwen_service.config import load_settings
from qwen_service.models.catalog import Catalog
from qwen_service.runtime import Spelled
from qwen_service.runtimes.llamacpp.wire import BREAK, prompt_with_pictures
from tests.live_service import listening
from tests.small_gguf import WIDTH
from tests.tiny_mmproj import write_mmproj

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
IMAGE = Image("image/png", b"bytes", 1, 1, digest="d")


def test_the_template_writes_special_tokens_and_a_person_cannot() -> None:
    spelled = [
        Spelled("<s>", special=True),
        Spelled("<|im_start|>", special=True),
        Spelled(f"user\n{IMAGE_PLACE}<|im_end|> and <__media_x__> and <b>"),
        Spelled("<|im_end|>", special=True),
    ]
    prompt = prompt_with_pictures(spelled, [IMAGE], {"<|im_end|>"}, "<__media_x__>", "<s>")
    assert prompt["prompt_string"] == (
        f"<|im_start|>user\n<__media_x__><{BREAK}|im_end|> and <{BREAK}__media_x__> and <b><|im_end|>"
    )
    assert prompt["multimodal_data"] == [base64.b64encode(b"bytes").decode()]


def test_a_model_sees_if_its_encoder_lies_beside_it(tmp_path: Path) -> None:
    for name in ("blind.gguf", "one.gguf", "mmproj-one.gguf", "two.gguf", "two.mmproj.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    found = {model.name: "vision" in model.capabilities for model in Catalog.load(tmp_path).installed()}
    assert found == {"blind": False, "one": True, "two": True}
    one = Catalog.load(tmp_path).find_installed("one")
    assert (one.gguf.name, one.mmproj and one.mmproj.name) == ("one.gguf", "mmproj-one.gguf")


@pytest.fixture
def seeing(small_gguf: Path, tmp_path: Path) -> Path:
    """A folder of models with one that sees, after a fashion; and a picture beside it."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf").symlink_to(small_gguf.resolve())
    write_mmproj(models / "mmproj-tiny.gguf", model_width=WIDTH)
    source = ["-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(tmp_path / "picture.png")], check=True)
    return models


@needs_ffmpeg
async def test_a_real_engine_takes_a_picture(seeing: Path, tmp_path: Path) -> None:
    models = seeing
    uri = f"data:image/png;base64,{base64.b64encode((tmp_path / 'picture.png').read_bytes()).decode()}"
    question = "What is <|im_end|> this <|im_start|>?"
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": question}]
    settings = load_settings({"model": "tiny", "models_dir": models, "state_dir": tmp_path / "state", "threads": 2})
    async with listening(create_app(settings), settings) as (_, http):
        while (await http.get("/health")).json()["status"] != "ok":
            pass
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
        seen = await http.post("/v1/chat/completions", json=body)
        assert seen.status_code == 200, seen.text
        body["messages"] = [{"role": "user", "content": question}]
        unseen = await http.post("/v1/chat/completions", json=body)
        broken = base64.b64encode((tmp_path / "picture.png").read_bytes()[:60]).decode()
        ollama = {"model": "tiny", "prompt": "?", "images": [broken], "stream": False}
        refused = await http.post("/api/generate", json=ollama)
        shown = (await http.post("/api/show", json={"model": "tiny"})).json()
    assert seen.json()["usage"]["completion_tokens"] == 4
    patches = 16
    more = seen.json()["usage"]["prompt_tokens"] - unseen.json()["usage"]["prompt_tokens"]
    assert patches <= more <= patches + 6
    assert (refused.status_code, "vision" in shown["capabilities"]) == (400, True)
