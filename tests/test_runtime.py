from collections.abc import Sequence

import pytest

from qwen_service.runtime import common_length


@pytest.mark.parametrize(
    ("one", "other", "count"), [([1, 2, 3], [1, 2, 4, 5], 2), ([1, 2], (1, 2, 3), 2), ([], [1], 0), ([2], [1], 0)]
)
def test_the_common_length_of_ids_ends_at_the_first_that_differs(
    one: Sequence[int], other: Sequence[int], count: int
) -> None:
    assert common_length(one, other) == count
