import json
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_service.operation.metrics import Metrics
from qwen_service.request_record import RequestRecord
from tests.operation.test_metrics import STATE, generation

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "packaging" / "grafana" / "qwen-service.json").read_text()
)
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """Names of all series with the names of their labels, after a reply, an error and a look at a card."""
    metrics = Metrics("1.0")
    metrics.observe_state(lambda: STATE)
    metrics.observe(generation())
    metrics.observe(RequestRecord("r", "POST", "/api/chat", "ollama", status=503, error="QueueFull"))
    return {s.name: set(s.labels) for family in metrics.registry.collect() for s in family.samples}


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_asks_for_series_and_labels_that_exist(query: str) -> None:
    series = exported()
    names = re.findall(r"\bqwen_\w+", query)
    assert names
    assert set(names) <= series.keys()
    by = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(",")}
    assert by <= {label for name in names for label in series[name]}


def test_a_legend_shows_labels_that_exist() -> None:
    series = exported()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            labels = {label for name in re.findall(r"\bqwen_\w+", target["expr"]) for label in series[name]}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels | {"job", "instance"}


def test_panels_do_not_overlap_and_fit_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
