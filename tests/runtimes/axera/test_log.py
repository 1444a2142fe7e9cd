import pytest

from qwen_service.runtimes.axera.log import AxeraLog

LOADING = (
    b"\x1b[1;30;32m[I][                            Init][ 110]: LLM init start\x1b[0m\nbos_id: -1, eos_id: 151645\n"
    b"\r  2% | \xe2\x96\x88          |   1 /  39 [0.00s<0.09s, 454.55 count/s] tokenizer init ok"
    b"\r100% | \xe2\x96\x88\xe2\x96\x88\xe2\x96\x88 |  39 /  39 [48.02s<48.02s, 0.81 count/s] init post axmodel ok\n"
    b"\x1b[1;30;32m[I][ Init][ 188]: max_token_len : 2559\x1b[0m\n[I][ Init][ 205]: grp: 1, prefill_max_token_num : 1\n"
    b"[I][ Init][ 209]: prefill_max_token_num : 2048\n[I][ Init][ 218]: LLM init ok\nServer running on port 8000...\n"
)


def read(data: bytes, step: int = 1 << 20) -> tuple[AxeraLog, list[str]]:
    progress: list[str] = []
    log = AxeraLog(progress.append, ready_text="Server running on port")
    for start in range(0, len(data), step):
        log.feed(data[start : start + step])
    return log, progress


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_however_the_output_is_cut_it_says_the_same(step: int) -> None:
    log, progress = read(LOADING, step)
    assert progress == ["loading 1/39", "loading 39/39"]
    assert log.numbers == {"max_token_len": 2559, "prefill_max_token_num": 2048}
    assert log.ready
    assert log.fault() is None


def test_it_is_not_ready_before_its_ready_line_is_whole() -> None:
    log, _ = read(LOADING[:-1])
    assert not log.ready


@pytest.mark.parametrize(
    ("line", "words", "permanent"),
    [
        ("[E][ Init][ 44]: axcl init fail, ret = 0x8030010b", "driver is not loaded", True),
        ("[E] open /dev/axcl_host fail", "driver is not loaded", True),
        ("[E] no device connected", "dtoverlay=pciex1-compat-pi5,no-mip", True),
        ("[E] Set AXCL device failed{0x80300186}", "Another process holds it", False),
        ("[E] request ports from device 1 fail, errno: 1", "Another process holds it", False),
        ("[E][ Init][ 161]: init axmodel(a/l3.axmodel) failed", "a/l3.axmodel cannot be loaded", True),
        ("[E] embed file x.bin open failed", "be writable", True),
        ("undefined option: --devices", "does not take these arguments", True),
        ("[E] something new", "reports: [E] something new", False),
    ],
)
def test_faults_are_told_in_plain_words_with_the_programs_own(line: str, words: str, permanent: bool) -> None:
    log, _ = read(b"\x1b[1;30;31m" + line.encode() + b"\x1b[0m\n")
    failure = log.start_failure(255)
    assert words in failure.message
    assert line in failure.message
    assert "exit code 255" in failure.message
    assert failure.permanent is permanent


def test_a_known_fault_counts_more_than_an_unknown_one_before_it() -> None:
    log, _ = read(b"[E] first\n[E] axcl init fail, ret = 0x8030010b\n")
    assert log.start_failure(None).permanent


def test_only_faults_of_the_npu_end_a_running_engine() -> None:
    log, _ = read(b"[E] something new\n")
    assert log.card_fault() is None
    log.feed(b"[E][ Run][ 512]: AX_ENGINE_Execute failed ret=0x80060301\n")
    complaint = log.card_fault()
    assert complaint is not None
    assert "The NPU failed" in str(complaint[0])


def test_an_error_is_known_by_the_form_of_the_builds_of_2026_too() -> None:
    log, _ = read(b"12:01:59.123 ERR Run:512 | AX_ENGINE_Execute failed ret=0x80060301\n")
    assert log.card_fault() is not None


def test_a_death_without_a_word_is_reported_by_its_exit() -> None:
    assert "SIGSEGV" in AxeraLog(print).start_failure(-11).message
