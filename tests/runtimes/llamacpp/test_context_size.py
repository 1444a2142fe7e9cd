import struct
from pathlib import Path

import pytest

from qwen_service.models.machine import Machine
from qwen_service.runtimes.llamacpp.bring_up import default_context
from qwen_service.runtimes.llamacpp.gguf import GgufError, GgufShape, read_shape

GB = 1 << 30
QWEN3_4B = GgufShape(40_960, 36 * 8 * 256 * 2)
QWEN25_05B = GgufShape(32_768, 24 * 2 * 128 * 2)


def test_the_head_of_a_real_file_tells_what_a_token_takes(smollm2: Path) -> None:
    assert read_shape(smollm2) == GgufShape(8192, 30 * 3 * 128 * 2)


@pytest.mark.parametrize("size", [0, 4, 24, 30, 200])
def test_a_head_that_is_cut_off_is_an_error_that_names_the_file(smollm2: Path, tmp_path: Path, size: int) -> None:
    with smollm2.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(size))
    with pytest.raises(GgufError, match="cut"):
        read_shape(tmp_path / "cut.gguf")


@pytest.mark.parametrize("value", [(8, 1 << 40), (9, 4, 1 << 40), (77, 0)])
def test_lengths_that_cannot_be_are_refused_and_not_read(tmp_path: Path, value: tuple[int, ...]) -> None:
    layout = {8: "<IQ", 9: "<IIQ", 77: "<IQ"}[value[0]]
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"x"
    (tmp_path / "odd.gguf").write_bytes(head + struct.pack(layout, *value))
    with pytest.raises(GgufError):
        read_shape(tmp_path / "odd.gguf")


def test_heads_that_differ_by_layer_are_added_up(tmp_path: Path) -> None:
    def text(content: str) -> bytes:
        return struct.pack("<Q", len(content)) + content.encode()

    def number(name: str, value: int) -> bytes:
        return text(name) + struct.pack("<II", 4, value)

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("odd"),
        number("odd.block_count", 3),
        number("odd.context_length", 5000),
        number("odd.attention.key_length", 10),
        number("odd.attention.value_length", 20),
        text("odd.attention.head_count_kv") + struct.pack("<IIQ3I", 9, 4, 3, 1, 0, 4),
    ]
    (tmp_path / "odd.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + b"".join(entries))
    assert read_shape(tmp_path / "odd.gguf") == GgufShape(5000, 5 * 30 * 2)


@pytest.mark.parametrize(
    ("shape", "weights", "available", "context"),
    [
        (QWEN25_05B, 0.5, 4, 32_768),  # what it was trained for
        (QWEN3_4B, 2.4, 4, 8192),
        (QWEN3_4B, 2.4, 3, 4096),  # less is of no use; the kernel may swap
        (QWEN3_4B, 2.4, 8, 16_384),  # half of what the weights leave
        (QWEN3_4B, 2.4, 64, 40_960),
        (GgufShape(2048, 1000), 0.1, 64, 2048),  # trained for less
        (GgufShape(0, 0), 0.1, 64, 4096),
        (GgufShape(32_768, 0), 0.1, 64, 4096),
        (QWEN25_05B, 0.5, 0, 4096),  # not known how much there is
    ],
)
def test_the_context_is_what_the_model_was_trained_for_as_far_as_memory_goes(
    shape: GgufShape, weights: float, available: float, context: int
) -> None:
    assert default_context(shape, int(weights * GB), int(available * GB)) == context


def test_a_little_less_memory_comes_to_the_same_context() -> None:
    assert {default_context(QWEN3_4B, int(2.4 * GB), int(gb / 10 * GB)) for gb in range(78, 90)} == {16_384}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4 kB\n"}, 4096),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB\n",
                "proc/self/cgroup": "0::/system.slice/q.service\n",
                "sys/fs/cgroup/system.slice/q.service/memory.max": "3000\n",
                "sys/fs/cgroup/system.slice/q.service/memory.current": "1000\n",
            },
            2000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4 kB\n",
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "1000\n",
            },
            4096,
        ),
        ({}, 0),
    ],
)
def test_the_memory_that_is_left(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert Machine(tmp_path, "x86_64").available_memory() == free
