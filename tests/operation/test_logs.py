import json
import logging
from pathlib import Path

import pytest

from qwen_service.chat import Finished, Started, Timings, Usage
from qwen_service.operation.logs import ROOT, TOKENIZER, LogFormat, configure, log_request, set_level
from qwen_service.request_record import RequestRecord, current_record

log = logging.getLogger(f"{ROOT}.test")


pytestmark = pytest.mark.usefixtures("loggers_as_before")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def ended_request() -> RequestRecord:
    record = RequestRecord("r1", "POST", "/v1/chat/completions", "openai", client="laptop")
    record.begin(Started("qwen3-4b", trimmed_messages=2))
    record.generated(30)
    record.end(Finished("stop", Usage(12, 30, 8), Timings(queue=0.5)))
    record.status = 200
    record.close()
    return record


def test_a_request_is_one_json_line_with_its_numbers(tmp_path: Path) -> None:
    configure("info", "json", tmp_path / "log")
    log_request(ended_request())
    (line,) = lines(tmp_path / "log")
    entry = json.loads(line)
    assert entry["request_id"] == "r1"
    assert (entry["prompt_tokens"], entry["cached_tokens"], entry["completion_tokens"]) == (12, 8, 30)
    assert (entry["model"], entry["finish"], entry["queue"], entry["trimmed"]) == ("qwen3-4b", "stop", 0.5, 2)
    assert (entry["client"], entry["dialect"]) == ("laptop", "openai")
    assert entry["ttft"] <= entry["duration"]


def test_a_request_is_one_line_of_text_too(tmp_path: Path) -> None:
    configure("info", "text", tmp_path / "log")
    log_request(ended_request())
    (line,) = lines(tmp_path / "log")
    assert "POST /v1/chat/completions 200" in line
    assert "completion_tokens=30" in line
    assert line.endswith("[r1]")


def test_a_reply_that_was_not_finished_is_called_cut(tmp_path: Path) -> None:
    configure("info", "json", tmp_path / "log")
    record = RequestRecord("r1", "POST", "/api/chat", "ollama")
    record.begin(Started("qwen3-4b"))
    record.generated(3)
    log_request(record)
    entry = json.loads(lines(tmp_path / "log")[0])
    assert (entry["finish"], entry["completion_tokens"]) == ("cut", 3)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_written_during_a_request_has_its_id(form: LogFormat, tmp_path: Path) -> None:
    configure("info", form, tmp_path / "log")
    token = current_record.set(RequestRecord("r42", "GET", "/", ""))
    log.info("the engine says hello")
    current_record.reset(token)
    log.info("and good-bye")
    first, second = lines(tmp_path / "log")
    assert "r42" in first
    assert "r42" not in second


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_client_can_forge_a_line(form: LogFormat, tmp_path: Path) -> None:
    configure("info", form, tmp_path / "log")
    log.info("path %s", "/x\r\n2026-01-01 ERROR forged")
    assert len(lines(tmp_path / "log")) == 1


def test_the_level_changes_while_the_service_runs(tmp_path: Path) -> None:
    configure("warning", "text", tmp_path / "log")
    log.info("unheard")
    log_request(ended_request())
    set_level("debug")
    log.debug("heard")
    assert len(lines(tmp_path / "log")) == 1
    assert "heard" in lines(tmp_path / "log")[0]
    assert not logging.getLogger("uvicorn").isEnabledFor(logging.DEBUG)


def test_the_file_is_rotated(tmp_path: Path) -> None:
    configure("info", "text", tmp_path / "log", max_bytes=1000)
    for number in range(50):
        log.info("line %d", number)
    assert (tmp_path / "log").stat().st_size <= 1000
    assert "line 49" in lines(tmp_path / "log")[-1]
    assert (tmp_path / "log.1").exists()


def test_a_full_disk_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text", Path("/dev/full"))
    log.info("one")
    log.info("two")
    heard = capsys.readouterr().err
    assert "two" in heard
    assert heard.count("cannot be written") == 1


def test_a_defect_is_logged_with_its_trace(tmp_path: Path) -> None:
    configure("info", "json", tmp_path / "log")
    try:
        raise ValueError("of all things")
    except ValueError:
        log.exception("failed")
    assert "ValueError: of all things" in json.loads(lines(tmp_path / "log")[0])["exception"]


def test_the_tokenizer_server_has_a_file_of_its_own_beside_the_common_one(tmp_path: Path) -> None:
    configure("info", "text", tmp_path / "service.log", tokenizer_file=tmp_path / "tokenizer.log")
    log.info("of the service")
    logging.getLogger(TOKENIZER).info("of the tokenizer")
    (own,) = lines(tmp_path / "tokenizer.log")
    assert "of the tokenizer" in own
    assert len(lines(tmp_path / "service.log")) == 2
