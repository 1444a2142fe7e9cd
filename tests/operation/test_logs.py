import json
import logging
from pathlib import Path

import pytest

from qwen_service.chat import Finished, Started, Timings, Usage
from qwen_service.operation.logs import ROOT, LogFormat, configure, log_request, set_level
from qwen_service.request_record import RequestRecord, current_record
from qwen_service.settings import TOKENIZER_LOGGER

log = logging.getLogger(f"{ROOT}.test")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def ended_request() -> RequestRecord:
    record = RequestRecord("r1", "POST", "/v1/chat/completions", "openai", client="laptop")
    record.begin(Started("qwen3-4b", trimmed_messages=2), 0.5)
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
    record.begin(Started("qwen3-4b"), 0.25)
    record.prefilled(12, 8)
    record.generated(3)
    log_request(record)
    entry = json.loads(lines(tmp_path / "log")[0])
    assert (entry["finish"], entry["completion_tokens"]) == ("cut", 3)
    assert (entry["prompt_tokens"], entry["cached_tokens"], entry["queue"]) == (12, 8, 0.25)


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


# Each character that moves a cursor, ends a line somewhere, turns the direction of writing, or is half of another.
OBEYED = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0x61C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
]
HALVES = [0xD800, 0xDBFF, 0xDC00, 0xDFFF]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("place", ["message", "field", "exception"])
def test_what_comes_from_outside_commands_no_terminal(form: LogFormat, place: str, tmp_path: Path) -> None:
    configure("info", form, tmp_path / "log")
    text = "|".join(map(chr, [*OBEYED, *HALVES]))
    try:
        raise ValueError(text if place == "exception" else "")
    except ValueError as error:
        log.info(
            "%s",
            text if place == "message" else "",
            exc_info=error,
            extra={"fields": {"model": text * (place == "field")}},
        )
    written = (tmp_path / "log").read_bytes().decode()  # whole characters only
    assert {ord(c) for c in written if ord(c) in OBEYED} == {ord("\n")}
    assert r"|\u001b|" in written
    assert r"|\u009b|" in written
    assert r"|\udc00|" in written
    if form == "json":
        entry = json.loads(written)
        assert text in (entry["message"], entry["model"], entry["exception"].removeprefix("ValueError: ")) or (
            place == "exception" and text in entry["exception"]
        )


def test_what_people_write_stays_readable(tmp_path: Path) -> None:
    configure("info", "json", tmp_path / "log")
    log.info("Größe 模型 😀 C:\\x")
    assert "Größe 模型 😀" in lines(tmp_path / "log")[0]


def test_no_line_of_a_traceback_looks_like_a_line_of_the_log(tmp_path: Path) -> None:
    configure("info", "text", tmp_path / "log")
    try:
        raise ValueError("x\n2026-01-01 00:00:00.000+00:00 ERROR forged")
    except ValueError:
        log.exception("failed")
    assert [line for line in lines(tmp_path / "log") if not line.startswith("    ")] == lines(tmp_path / "log")[:1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_path_looks_like_a_status_or_a_field(form: LogFormat, tmp_path: Path) -> None:
    configure("info", form, tmp_path / "log")
    log_request(RequestRecord("r1", "GET", "/\x1b]0;x\x07 200 client=admin\u3000", "", client="203.0.113.9"))
    (line,) = lines(tmp_path / "log")
    assert "GET /%1B]0;x%07%20200%20client=admin%E3%80%80 499" in line


def test_a_field_with_spaces_is_one_field(tmp_path: Path) -> None:
    configure("info", "text", tmp_path / "log")
    log.info("x", extra={"fields": {"model": 'a client=admin "b"', "error": "", "n": 1}})
    assert lines(tmp_path / "log")[0].endswith(r'x model="a client=admin \"b\"" error= n=1')


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
    logging.getLogger(TOKENIZER_LOGGER).info("of the tokenizer")
    (own,) = lines(tmp_path / "tokenizer.log")
    assert "of the tokenizer" in own
    assert len(lines(tmp_path / "service.log")) == 2
