from typing import Any

import pytest

from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.json_schema import (
    MAX_BYTES,
    MAX_ENFORCED_OBJECTS,
    MAX_OBJECTS,
    MAX_PATTERNS,
    SchemaBudget,
    check_enforceable,
    first_error,
    json_error,
)

PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def check_schema(schema: dict[str, Any], param: str) -> None:
    SchemaBudget().check(schema, param)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        PERSON,
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
        {"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
        {"$schema": "http://127.0.0.1:1/our-own", "type": "object", "properties": {"$schema": {"type": "string"}}},
        {"$defs": {"a": {"$anchor": "here", "items": {"$ref": "#here"}}}, "$ref": "#/$defs/a"},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a/b": {"$id": "#old"}},
            "allOf": [{"$ref": "#/definitions/a~1b"}, {"$ref": "#old"}],
        },
        {"patternProperties": {"^x": {}}, "x-vendor": 1, "type": "string", "nullable": True, "format": "unheard-of"},
    ],
)
def test_a_valid_schema_is_taken(schema: dict[str, Any]) -> None:
    check_schema(schema, "format")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"properties": {"a": 3}},
        {"required": True},
        {"properties": {"a": {"$ref": "#/$defs/missing"}}},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"not": {"$ref": "#/$defs/a"}}]}}},
        {"$ref": "#/allOf/7", "allOf": [{}]},
        {"$schema": "http://127.0.0.1:1/our-own", "type": "text"},
    ],
)
def test_an_invalid_schema_is_refused_and_the_field_named(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_schema(schema, "tools[0].function.parameters")
    assert refusal.value.param == "tools[0].function.parameters"
    assert "tools[0].function.parameters" in refusal.value.message


def test_a_reference_to_somewhere_else_is_refused_and_never_fetched() -> None:
    with pytest.raises(InvalidRequest, match="nothing is fetched"):
        check_schema({"properties": {"a": {"$ref": "http://127.0.0.1:1/schema.json"}}}, "format")


def test_size_and_depth_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="bytes"):
        check_schema({"enum": ["x" * MAX_BYTES]}, "format")
    with pytest.raises(InvalidRequest, match="levels"):
        check_schema(nested(60), "format")
    check_schema(nested(20), "format")


def test_the_schemas_of_a_request_have_one_budget() -> None:
    by_bytes, by_objects = SchemaBudget(), SchemaBudget()
    half: dict[str, Any] = {"enum": ["x" * (MAX_BYTES // 2)]}
    many: dict[str, Any] = {"enum": [{}] * (MAX_OBJECTS * 2 // 3)}
    by_bytes.check(half, "tools[0]")
    by_objects.check(many, "tools[0]")
    with pytest.raises(InvalidRequest, match=r"bytes: tools\[1\]"):
        by_bytes.check(half, "tools[1]")
    with pytest.raises(InvalidRequest, match=r"objects: tools\[1\]"):
        by_objects.check(many, "tools[1]")


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "a" * MAX_PATTERNS},
        {"properties": {f"p{index}": {"pattern": f"^{index}$"} for index in range(500)}},
        {"patternProperties": {f"^{index}$": {} for index in range(500)}},
    ],
)
def test_patterns_have_a_budget_of_their_own(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="characters of patterns"):
        check_schema(schema, "format")


def test_only_a_schema_of_few_objects_is_enforced() -> None:
    wide: dict[str, Any] = {"properties": {f"p{index}": {} for index in range(MAX_ENFORCED_OBJECTS)}}
    check_schema(wide, "format")
    with pytest.raises(InvalidRequest, match="enforced"):
        check_enforceable(wide, "format")


@pytest.mark.parametrize("schema", [{"patternProperties": {}}, {"items": {"pattern": "(?=a)"}}, {"pattern": r"(a)\1"}])
def test_what_cannot_be_checked_cannot_be_promised(schema: dict[str, Any]) -> None:
    check_schema(schema, "format")
    with pytest.raises(Unsupported):
        check_enforceable(schema, "format")


def test_a_pattern_cannot_hang_the_service() -> None:
    error = first_error({"pattern": "^(a+)+$"}, "a" * 5000 + "b")
    assert error is not None
    assert "does not match" in error


def test_references_that_double_at_each_level_are_given_up() -> None:
    doubled = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    error = first_error({"$ref": "#/$defs/d0", "$defs": doubled | {"d30": {"type": "integer"}}}, 3)
    assert error is not None
    assert "references" in error


def test_the_fault_is_told_with_its_place() -> None:
    assert first_error(PERSON, {"age": "old"}) == "$.age: 'old' is not of type 'integer'"
    assert first_error(PERSON, {"age": 7}) is None


def test_a_long_fault_is_cut() -> None:
    error = first_error({"type": "integer"}, "x" * 5000)
    assert error is not None
    assert len(error) == 400


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": NaN}', "{} {}", "```json\n{}\n```"])
def test_what_is_no_json_object_is_not_taken_for_one(text: str) -> None:
    assert json_error(text, None) is not None


def test_json_of_the_schema_has_no_fault() -> None:
    assert json_error(' {"age": 3}\n', PERSON) is None
    assert json_error("[1]", {"type": "array"}) is None
    assert json_error("{}", None) is None
