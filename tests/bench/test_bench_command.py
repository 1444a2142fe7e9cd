"""The command as an owner runs it: options, exit status, failures of the server, reports."""

import json
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.bench.conftest import StartServer, bench

QUICK = ("--prompts", "short", "--rounds", "2")
FAST = {"ttft_ms": 30, "token_ms": 5, "tokens": 8}


def test_the_table_names_what_was_measured_and_fits_eighty_columns(timed_server: StartServer) -> None:
    done = bench("--url", timed_server(**FAST | {"ttft_ms": 1200}), *QUICK, "--clients", "1,2")
    assert done.returncode == 0
    for part in ("this", "timed", "short", "×2", "first", "tokens", "Median"):
        assert part in done.stdout
    assert "…" not in done.stdout  # nothing is cut off
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_requirements_decide_the_exit_status(timed_server: StartServer) -> None:
    url = timed_server(**FAST)
    met = bench("--url", url, *QUICK, "--require", "ttft_p95<20s", "--require", "errors<1")
    assert (met.returncode, "NOT MET" in met.stdout) == (0, False)
    missed = bench("--url", url, *QUICK, "--require", "tps_p50>100000")
    assert missed.returncode == 3
    assert "NOT MET  tps_p50>100000" in missed.stdout


def test_the_plans_profile_asks_for_512_tokens_in_6_seconds(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=50, token_ms=2, tokens=512)
    done = bench("--url", url, "--profile", "qwen3-4b-plan", "--rounds", "1", "--no-warm-up")
    assert done.returncode == 0, done.stdout
    assert "met  e2e_p50<6s" in done.stdout
    assert "met  tokens_p50>=512" in done.stdout


def test_failures_of_the_server_are_counted_and_named_and_do_not_end_the_run(timed_server: StartServer) -> None:
    done = bench("--url", timed_server(**FAST, fail_every=3), *QUICK, "--rounds", "6", "--json", "-")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["rows"][0]["requests"] == 6
    assert report["rows"][0]["errors"] == 2
    assert report["failures"] == {"this: 500: told to fail": 2}
    assert report["rows"][0]["spreads"]["ttft"]["count"] == 4


def test_a_reply_that_breaks_off_is_an_error_and_not_a_short_reply(timed_server: StartServer) -> None:
    done = bench("--url", timed_server(**FAST, cut_after=3), *QUICK, "--json", "-")
    report = json.loads(done.stdout)
    assert report["rows"][0]["errors"] == 2
    assert "the connection broke" in next(iter(report["failures"]))


@pytest.mark.parametrize(("arguments", "words"), [
    (("--url", "http://127.0.0.1:9"), "cannot connect"),
    (("--url", "localhost:8080"), "must start with http://"),
    (("--prompts", "poem"), "no prompts poem; there are short, talk"),
    (("--clients", "1,x"), "numbers with commas"),
    (("--require", "ttft<"), "examples: ttft_p95<2s"),
    (("--require", "speed>3"), "no metric 'speed'"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(timed_server: StartServer, arguments: tuple[str, ...], words: str) -> None:
    url = () if "--url" in arguments else ("--url", timed_server(**FAST))
    done = bench(*url, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_answer_to_the_json_prompt_that_is_not_json_counts_as_failed(timed_server: StartServer) -> None:
    """The simulator stops by `length`, which excuses a cut answer; it never writes JSON."""
    done = bench("--url", timed_server(**FAST), "--prompts", "json", "--rounds", "1", "--json", "-")
    assert json.loads(done.stdout)["rows"][0]["errors"] == 0


def test_ctrl_c_shows_what_was_measured_until_then(timed_server: StartServer) -> None:
    url = timed_server(ttft_ms=20, token_ms=5, tokens=5)
    command = [sys.executable, "-m", "bench.load", "--url", url, "--prompts", "short", "--rounds", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while len(httpx.get(f"{url}/timed/log").json()) < 5:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()  # where it has not ended: leaving the block waits for it
    assert process.returncode == 130
    assert "Interrupted" in output
    assert "short" in output
