import io
import json

from rich.console import Console

from qwen_service.commands.progress import TerminalSink
from qwen_service.install.progress import JsonSink, LogSink, Progress, Tally, describe, human_bytes, human_time


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_tells_files_bytes_rate_and_time_left() -> None:
    progress = Progress("downloading", 3, 32, 300_000_000, 1_500_000_000, resumed=100_000_000, seconds=20)
    assert describe(progress) == ("downloading: 3 of 32 files, 300.0 MB of 1.50 GB (20%), 10.0 MB/s, 2 min 0 s left")


def test_what_was_there_before_does_not_make_the_rate_look_better() -> None:
    assert Progress("x", bytes=100, total_bytes=200, resumed=100, seconds=5).seconds_left is None


def test_a_log_gets_a_line_now_and_then_and_always_the_last() -> None:
    clock, out = Clock(), io.StringIO()
    sink = LogSink(out, interval=5, clock=clock)
    for clock.now, done in ((1, 10), (6, 20), (7, 30), (8, 100)):
        sink.update(Progress("downloading", int(done == 100), 1, done, 100))
    assert [line.split(", ")[1] for line in out.getvalue().splitlines()] == [
        "20 B of 100 B (20%)",
        "100 B of 100 B (100%)",
    ]


def test_a_program_gets_json_lines_at_a_bounded_rate() -> None:
    clock, out = Clock(), io.StringIO()
    sink = JsonSink(out, interval=0.2, clock=clock)
    for clock.now, done in ((0, 1), (0.1, 2), (0.3, 3)):
        sink.update(Progress("downloading", 0, 1, done, 9))
    sink.stage("done")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("completed") for line in lines] == [1, 3, None]
    assert lines[-1] == {"status": "done"}


def test_a_tally_adds_up_what_threads_report() -> None:
    out = io.StringIO()
    tally = Tally(JsonSink(out, interval=0), "verifying", 2, 30, resumed=10)
    tally.add_bytes(20)
    tally.add_bytes(-10)
    tally.add_file()
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last == {"status": "verifying", "completed": 20, "total": 30, "files": 1, "total_files": 2}


def test_a_terminal_gets_a_bar_with_the_same_figures() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with TerminalSink(console) as sink:
        sink.stage("Looking up [bold] ...")
        sink.update(Progress("downloading", 3, 32, 300_000_000, 1_500_000_000, seconds=30))
        sink.stage("done")
    text = out.getvalue()
    assert "Looking up [bold] ..." in text
    assert "3/32 files" in text
    assert "300.0 MB of 1.50 GB  10.0 MB/s  2 min 0 s left" in text


def test_sizes_and_times_are_for_people() -> None:
    assert [human_bytes(n) for n in (0, 999, 98_362_432, 5_100_000_000)] == ["0 B", "999 B", "98.4 MB", "5.10 GB"]
    assert [human_time(n) for n in (4.2, 65, 7300)] == ["4 s", "1 min 5 s", "2 h 1 min"]
