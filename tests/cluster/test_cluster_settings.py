from pathlib import Path

import pytest

from qwen_service.cluster.settings import load_cluster_settings
from qwen_service.config import ConfigError


def test_the_file_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("model: qwen3-4b\nreplicas: 3\nservice: {queue_size: 4}\n")
    settings = load_cluster_settings(file, replicas=2, port=None)
    assert (settings.model, settings.replicas, settings.port, settings.service) == (
        "qwen3-4b",
        2,
        8080,
        {"queue_size": 4},
    )


def test_without_a_file_the_command_line_is_enough(tmp_path: Path) -> None:
    assert load_cluster_settings(tmp_path / "none.yaml", model="qwen3-4b").replicas_on == "card"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a\nreplicas: -1\n", "replicas: .* 0"),
        ("model: a\nreplica: 1\n", "replica: .* known are model, replicas"),
        ("replicas: 1\n", "model: .* every node has installed"),
        ("[1]", "expected lines of the form"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_cure(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        load_cluster_settings(file)
