"""The reported figures against what the simulator writes down about itself: they agree within 2 %."""

import json
from typing import Any

import httpx
import pytest

from bench.load.statistics import percentile
from tests.bench.conftest import StartServer, bench

QUIET = 1e-3  # seconds by which the loopback and the scheduler may differ from the simulator's own clock


def measured(url: str, *arguments: str) -> Any:
    done = bench("--url", url, "--json", "-", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def truth(url: str, *, warm_ups: int = 1) -> list[dict[str, Any]]:
    """What the server did, without the warm-up, in the order of its requests."""
    entries: list[dict[str, Any]] = httpx.get(f"{url}/timed/log").json()
    return sorted(entries, key=lambda entry: entry["received"])[warm_ups:]


@pytest.mark.parametrize("api", ["openai", pytest.param("ollama", marks=pytest.mark.long)])
def test_times_to_first_token_between_tokens_and_end_to_end_agree(timed_server: StartServer, api: str) -> None:
    url = timed_server(ttft_ms="700,800,900", token_ms="30,33,36", tokens=19)
    report = measured(url, "--api", api, "--prompts", "short", "--rounds", "3")
    log = truth(url)
    spreads = report["rows"][0]["spreads"]
    truths = {
        "ttft": [entry["sent"][0] - entry["received"] for entry in log],
        "e2e": [entry["ended"] - entry["received"] for entry in log],
        "tps": [18 / (entry["sent"][-1] - entry["sent"][0]) for entry in log],
    }
    for name, values in truths.items():
        assert spreads[name]["count"] == len(values) == 3
        assert spreads[name]["p50"] == pytest.approx(percentile(values, 50), rel=0.02, abs=QUIET), name
    for percent in (95, 99):
        assert spreads["ttft"][f"p{percent}"] == pytest.approx(percentile(truths["ttft"], percent), rel=0.02)
    gaps = [after - before for entry in log for before, after in zip(entry["sent"], entry["sent"][1:], strict=False)]
    assert spreads["gap"]["count"] == len(gaps)
    assert spreads["gap"]["p50"] == pytest.approx(percentile(gaps, 50), rel=0.02, abs=QUIET)


def test_every_piece_is_stamped_when_it_arrives(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=100, token_ms=15, tokens=30)
    report = measured(url, "--prompts", "short", "--rounds", "3")
    lateness = [
        seen - sent
        for batch, entry in zip(report["batches"], truth(url), strict=True)
        for seen, sent in zip(batch["measurements"][0]["token_times"], entry["sent"], strict=True)
    ]
    assert len(lateness) == 90
    assert percentile(lateness, 50) < QUIET


@pytest.mark.long
def test_throughput_of_several_clients_agrees(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=400, token_ms=60, tokens=25)
    report = measured(url, "--prompts", "short", "--rounds", "3", "--clients", "4")
    log = truth(url)
    rounds = [log[0:4], log[4:8], log[8:12]]
    spans = [max(entry["ended"] for entry in one) - min(entry["received"] for entry in one) for one in rounds]
    assert report["rows"][0]["throughput"] == pytest.approx(percentile([100 / span for span in spans], 50), rel=0.02)


def test_the_queue_wait_that_ollama_reports_is_read(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=150, token_ms=10, tokens=10, slots=1)
    report = measured(url, "--api", "ollama", "--prompts", "short", "--rounds", "2", "--clients", "2")
    waits = sorted(m["queue"] for batch in report["batches"] for m in batch["measurements"])
    log = truth(url)
    expected = sorted(entry["begun"] - entry["received"] for entry in log)
    assert waits == pytest.approx(expected, rel=0.05, abs=0.01)
    assert waits[-1] > 0.2


@pytest.mark.long
def test_the_ratio_of_two_servers_is_the_ratio_of_their_timings(timed_server: StartServer) -> None:
    fast, slow = timed_server(ttft_ms=400, token_ms=20, tokens=20), timed_server(ttft_ms=500, token_ms=25, tokens=20)
    report = measured(fast, "--vs", slow, "--prompts", "short", "--rounds", "3")
    ratios = report["comparisons"][0]["ratios"]
    pairs = list(zip(truth(fast), truth(slow), strict=True))
    expected = percentile(
        [(a["sent"][0] - a["received"]) / (b["sent"][0] - b["received"]) for a, b in pairs], 50
    )  # fmt: skip
    assert ratios["ttft"]["median"] == pytest.approx(expected, rel=0.02)
    assert ratios["ttft"]["low"] <= ratios["ttft"]["median"] <= ratios["ttft"]["high"]
    assert ratios["gap"]["median"] == pytest.approx(20 / 25, rel=0.05)


def test_prompt_and_cached_tokens_and_the_cards_temperature_are_taken_over(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=20, token_ms=5, tokens=5, cached=7, heat=61)
    report = measured(url, "--prompts", "talk", "--rounds", "1")
    measurements = report["batches"][0]["measurements"]
    assert [m["turn"] for m in measurements] == [0, 1, 2, 3, 4]
    assert {m["cached_tokens"] for m in measurements} == {7}
    prompts = [m["prompt_tokens"] for m in measurements]
    assert prompts == sorted(set(prompts))  # each turn carries the ones before
    assert report["surroundings"]["peak_temperature"] == {"this": 61}


def test_the_memory_of_a_local_server_is_measured(timed_server: StartServer) -> None:
    report = measured(timed_server(ttft_ms=20, token_ms=5, tokens=5), "--prompts", "short", "--rounds", "1")
    assert 5e6 < report["surroundings"]["peak_rss"]["this"] < 200e6
