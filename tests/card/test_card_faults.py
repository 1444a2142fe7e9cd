import pytest

from qwen_service.card.faults import explain


@pytest.mark.parametrize(
    ("line", "permanent"),
    [
        ("axcl init fail, ret = 0x8030010b", True),
        ("open /dev/axcl_host fail", True),
        ("Set AXCL device failed{0x80300186}", False),
        ("request ports from device 1 fail, errno: 1 Operation not permitted", False),
        ("[  812.1] axcl: device 1: dead!", False),
        ("[E][runAxModelAxcl] AX_ENGINE_Execute failed 0x80060106", False),
    ],
)
def test_each_known_error_line_has_a_meaning_and_a_cure(line: str, permanent: bool) -> None:
    fault = explain(f"\x1b[31mnoise\n{line}\nmore noise")
    assert fault is not None
    assert fault.permanent is permanent
    assert fault.cure in str(fault)


def test_an_unknown_line_is_not_explained() -> None:
    assert explain("LLM init ok") is None
