"""What of a client's schema the engine gets."""

from typing import Any

import pytest

from qwen_service.text.grammar import GUIDANCE, MOST_ITEMS, guided

ARRAY = {"type": "array", "items": {"type": "string"}}


def given(schema: dict[str, Any]) -> dict[str, Any]:
    guided_schema = guided(schema)
    assert guided_schema.pop("x-guidance") == GUIDANCE["x-guidance"]
    return guided_schema


def test_a_guided_schema_is_lenient_and_bounds_white_space() -> None:
    assert guided({"type": "string"})["x-guidance"] == {"lenient": True, "whitespace_pattern": r"[ \n]?"}


def test_bounds_that_a_reply_can_reach_are_the_engines() -> None:
    schema = {"$defs": {"a": {**ARRAY, "minItems": 2, "maxItems": MOST_ITEMS - 2}}, "$ref": "#/$defs/a"}
    assert given(schema) == schema


@pytest.mark.parametrize("bound", [MOST_ITEMS + 1, 2**31 - 1, 1e300, float("inf"), float("nan")])
def test_a_bound_that_no_reply_reaches_is_not(bound: float) -> None:
    assert given({**ARRAY, "minItems": 1, "maxItems": bound}) == {**ARRAY, "minItems": 1}
    assert given({**ARRAY, "minItems": bound}) == ARRAY


def test_many_bounds_count_together() -> None:
    many = [{**ARRAY, "maxItems": 1000} for _ in range(50)]
    kept = [part for part in given({"anyOf": many})["anyOf"] if "maxItems" in part]
    assert len(kept) * 1000 == MOST_ITEMS


def test_nothing_makes_room_for_more() -> None:
    schema = {"x-notes": {"minItems": -(10**18)}, "anyOf": [{**ARRAY, "minItems": 10**9}]}
    assert given(schema)["anyOf"] == [ARRAY]


def test_properties_and_values_of_these_names_stay() -> None:
    schema = {
        "type": "object",
        "properties": {"minItems": {"type": "integer"}, "maxItems": {"const": {"maxItems": 10**9}}},
        "enum": [{"minItems": 10**9}],
    }
    assert given(schema) == schema


def test_the_clients_own_schema_is_left_as_it_is() -> None:
    schema = {**ARRAY, "maxItems": 10**9}
    guided({"items": schema})
    assert schema["maxItems"] == 10**9
