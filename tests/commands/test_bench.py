"""qwen-service bench, as an owner runs it, against a server of known timing."""

import json
import os
import subprocess

import pytest

from tests import preloaded
from tests.bench.conftest import StartServer, timed_server

__all__ = ["timed_server"]  # a fixture

FAST = {"ttft_ms": 200, "token_ms": 20, "tokens": 8}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run("bench", *arguments, env=os.environ)


def test_the_table_has_a_row_for_each_number_of_clients(timed_server: StartServer) -> None:  # a fixture
    done = bench("--url", timed_server(**FAST), "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "first token" in done.stdout
    assert "0 of 4" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_the_figures_are_those_of_the_server(timed_server: StartServer) -> None:  # a fixture
    url = timed_server(**FAST)
    for _ in range(3):  # on a busy machine the client may read a whole reply at once
        done = bench("--url", url, "--rounds", "2", "--clients", "1,2", "--json")
        one, two = json.loads(done.stdout)["rows"]
        if one["tokens_per_second"] <= 60:
            break
    assert (one["clients"], one["replies"], two["clients"], two["replies"]) == (1, 2, 2, 4)
    assert 0.2 <= one["first_token_seconds"] < 2
    assert 5 < one["tokens_per_second"] <= 60
    assert one["errors"] == two["errors"] == {}


def test_what_fails_is_counted_and_named(timed_server: StartServer) -> None:  # a fixture
    done = bench("--url", timed_server(**FAST, fail_every=3), "--rounds", "5", "--clients", "1", "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert row["replies"] + sum(row["errors"].values()) == 5
    assert any("told to fail" in error for error in row["errors"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "http://127.0.0.1:9"), "No service answers at"),
        (("--url", "localhost:8080"), "No service answers at"),
        (("--clients", "1,x"), "no whole number above 0"),
        (("--rounds", "0"), "no whole number above 0"),
    ],
)
def test_what_is_wrong_is_told_in_words(arguments: tuple[str, ...], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
