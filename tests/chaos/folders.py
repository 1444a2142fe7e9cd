"""What a target needs on disk: a real GGUF, or a card's model folder with a real tokenizer."""

import os
from pathlib import Path

from qwen_service.models.catalog import Catalog
from tests.chaos.target import MODELS
from tests.conftest import SMOLLM2, TEST_FILES, first_existing
from tests.small_gguf import write_small_gguf


def prepare(target: str, folder: Path) -> None:
    """Skips the test where the files are missing."""
    if target == "llamacpp":
        gguf = first_existing(SMOLLM2, os.environ.get("QWEN_TEST_SMOLLM2"), TEST_FILES / SMOLLM2)
        write_small_gguf(gguf, folder / "model.gguf")  # quick enough for a storm worth the name
        return
    (folder / "model.gguf").touch()
    if target in MODELS:
        tokenizer = first_existing("Qwen3's tokenizer", os.environ.get("QWEN_TEST_TOKENIZER"), TEST_FILES / "qwen3")
        spec = Catalog.load(folder / "models").find(MODELS[target])
        place = folder / "state" / "simulated" / spec.name / str(spec.tokenizer)
        place.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (place / name).symlink_to((tokenizer / name).resolve())
