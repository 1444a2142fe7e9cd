import subprocess
import sys
from pathlib import Path

import pytest

from qwen_service.cluster.node_facts import look_at_this_node, pull_on_this_node, read_cards
from qwen_service.config import load_settings
from qwen_service.errors import UnknownModel
from qwen_service.models.machine import Machine
from tests import ROOT
from tests.card_service import SIMULATORS, CardHost
from tests.hub_server import hub_server, put

REPO, REVISION = "people/mini", "a" * 40
MANIFEST = f"""\
name: mini
runtime: llamacpp
source: {{repo: {REPO}, revision: {REVISION}}}
files: [{{path: mini.gguf}}]
"""
# In a process of its own: the hub's client reads HF_ENDPOINT when it is imported.
PULL = "from qwen_service.cluster.node_facts import pull_on_this_node as pull; print(*pull('mini'), sep='\\n')"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of this node's models, with the manifest of one."""
    (tmp_path / "models/manifests").mkdir(parents=True)
    (tmp_path / "models/manifests/mini.yaml").write_text(MANIFEST)
    monkeypatch.setenv("QWEN_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "models"


def test_a_node_pulls_into_its_own_folder_and_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path
) -> None:
    put(tmp_path / "hub", REPO, REVISION, {"mini.gguf": bytes(range(256)) * 4096})
    assert look_at_this_node().models == ()
    with hub_server(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        told = subprocess.run(
            [sys.executable, "-c", PULL], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
        )
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("pulling manifest\n")
    assert look_at_this_node().models == ("mini",)


def test_a_model_that_the_node_does_not_know_is_refused() -> None:
    with pytest.raises(UnknownModel, match="no-such-model"):
        list(pull_on_this_node("no-such-model"))


def test_a_node_tells_the_temperatures_of_its_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = CardHost(tmp_path / "host", tmp_path)
    monkeypatch.setenv("SIM_CARDS", str(host.cards_file))
    settings = load_settings({"axcl_smi": str(SIMULATORS / "axcl-smi")})
    assert [card.index for card in read_cards(settings, Machine(host.folder / "root")).cards] == [0, 1]
    assert read_cards(settings, Machine(tmp_path / "no-card")).cards == ()
