"""Checks the JSON schemas that clients send, and checks replies with them.

Schemas are untrusted: size, depth and number of objects are bounded, references must stay inside (nothing is fetched),
and no pattern can hang the service: regular expressions run in linear time, in pydantic-core's engine.

Schemas are checked by jsonschema-rs: 60 kB take 8 ms instead of 1.06 s. Replies are checked by jsonschema, because its
keywords can be replaced, so that references are counted; jsonschema-rs takes 239 s for 22 levels of doubled references.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema_rs
import orjson
from jsonschema import ValidationError, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator
from pydantic_core.core_schema import str_schema
from referencing.jsonschema import EMPTY_REGISTRY

from qwen_service.errors import InvalidRequest, Unsupported
from qwen_service.text.schema_references import faulty_reference

MAX_BYTES = 256 * 1024  # of all schemas of one request
MAX_OBJECTS = 5_000  # in all schemas of one request
MAX_ENFORCED_OBJECTS = 1_000  # in a schema that the engine enforces: it is compiled to a grammar
MAX_PATTERNS = 16_384  # characters of all patterns of one request: compiling 250 kB of them takes 0.6 s
COST_OF_A_PATTERN = 32  # characters added to the length of each pattern
MAX_DEPTH = 48
MAX_REFERENCES = 10_000  # followed in one check of a reply: a few lines of nested allOf could ask for 2**30
MAX_MESSAGE = 400  # characters

# Their patterns run in a backtracking engine that we cannot replace.
UNSUPPORTED = ("patternProperties", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")

# The drafts that jsonschema-rs has; it would try to fetch any other.
DRAFTS = {f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)}
DRAFTS |= {f"https://json-schema.org/draft/{year}/schema" for year in ("2019-09", "2020-12")}

Schema = Mapping[str, Any]


class SchemaBudget:
    """Bounds what all schemas of one request cost together. Make one for each request."""

    def __init__(self) -> None:
        self._left = {"bytes": MAX_BYTES, "objects": MAX_OBJECTS, "characters of patterns": MAX_PATTERNS}

    def check(self, schema: Schema, param: str) -> None:
        """Check one schema. Raises InvalidRequest that names `param`, the field of the request with the schema."""
        try:
            size = len(orjson.dumps(schema))
        except TypeError as error:  # an absurd number, or nested too deeply
            raise InvalidRequest(f"Invalid schema in {param}: {error}.", param=param) from error
        self._spend(size, "bytes", param)
        parts = _parts(schema, param)
        self._spend(len(parts), "objects", param)
        self._spend(sum(map(_pattern_cost, parts)), "characters of patterns", param)
        if fault := faulty_reference(schema, parts) or _meta_fault(schema, parts):
            raise InvalidRequest(f"Invalid schema in {param}: {fault}", param=param)

    def _spend(self, amount: int, unit: str, param: str) -> None:
        if amount > self._left[unit]:
            left = f"{param} has {amount}, and {self._left[unit]} are left for it"
            raise InvalidRequest(f"The schemas of this request hold too many {unit}: {left}.", param=param)
        self._left[unit] -= amount


def _meta_fault(schema: Schema, parts: list[Schema]) -> str | None:
    """How the schema breaks the rules of its draft, or of 2020-12 when it names no known draft; None: it does not."""
    if any("$schema" in part for part in parts):
        schema = _without_unknown_drafts(schema)
    try:
        jsonschema_rs.meta.validate(dict(schema))
    except jsonschema_rs.ValidationError as error:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        return _shortened(f"${place}: {error.message}")
    return None


def _without_unknown_drafts(part: Any) -> Any:
    """Copy the schema without `$schema`s of unknown drafts, which jsonschema-rs would try to fetch."""
    if isinstance(part, Mapping):
        return {key: _without_unknown_drafts(value) for key, value in part.items() if not _is_unknown_draft(key, value)}
    if isinstance(part, list):
        return [_without_unknown_drafts(item) for item in part]
    return part


def _is_unknown_draft(key: str, value: Any) -> bool:
    return key == "$schema" and isinstance(value, str) and value.removesuffix("#") not in DRAFTS


def check_enforceable(schema: Schema, param: str) -> None:
    """Further checks of a schema that replies must satisfy: everything in it must be checkable and enforceable."""
    parts = _parts(schema, param)
    if len(parts) > MAX_ENFORCED_OBJECTS:
        message = f"The schema in {param} holds {len(parts)} objects; at most {MAX_ENFORCED_OBJECTS} can be enforced."
        raise InvalidRequest(message, param=param)
    for part in parts:
        for keyword in UNSUPPORTED:
            if keyword in part:
                raise Unsupported(f"The schema in {param} uses {keyword}, which is not supported.", param=param)
        if isinstance(pattern := part.get("pattern"), str):
            _check_pattern(pattern, param)


def first_error(schema: Schema, value: Any) -> str | None:
    """The most telling reason why `value` does not satisfy the schema, for a person or a model to read."""
    error = best_match(_validator(schema).iter_errors(value))
    return None if error is None else _shortened(f"{error.json_path}: {error.message}")


def json_error(text: str, schema: Schema | None) -> str | None:
    """Why `text` is not JSON of this schema; None when it is. Without a schema any JSON object is right."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"it is not JSON: {error}"
    return first_error({"type": "object"} if schema is None else schema, value)


def _validator(schema: Schema) -> Validator:
    base = validators.validator_for(schema, default=Draft202012Validator)
    keywords = {"pattern": _pattern, "$ref": _counted(base.VALIDATORS["$ref"])}
    extended: type[Validator] = validators.extend(base, keywords)  # type: ignore[no-untyped-call]  # as the stubs have it
    return extended(schema, registry=EMPTY_REGISTRY)


Keyword = Callable[[Validator, Any, Any, Any], Iterator[ValidationError]]


def _counted(follow: Keyword) -> Keyword:
    left = iter(range(MAX_REFERENCES))

    def reference(validator: Validator, ref: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if next(left, None) is None:
            yield ValidationError(f"checking it follows more than {MAX_REFERENCES} references")
        else:
            yield from follow(validator, ref, instance, schema) or ()

    return reference


def _pattern(_validator: Validator, pattern: str, instance: object, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compile(pattern).isinstance_python(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _compile(pattern: str) -> SchemaValidator:
    return SchemaValidator(str_schema(pattern=pattern, regex_engine="rust-regex"))


def _parts(schema: Schema, param: str) -> list[Schema]:
    """All objects in the schema, the schema itself first."""
    found: list[Schema] = []
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                found.append(part)
                children += part.values()
            else:
                children += part
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return found
    raise InvalidRequest(f"The schema in {param} is nested deeper than {MAX_DEPTH} levels.", param=param)


def _pattern_cost(part: Schema) -> int:
    """The cost of compiling the patterns of one object, in characters."""
    patterns = [pattern for pattern in (part.get("pattern"),) if isinstance(pattern, str)]
    if isinstance(named := part.get("patternProperties"), dict):
        patterns += named
    return sum(COST_OF_A_PATTERN + len(pattern) for pattern in patterns)


def _check_pattern(pattern: str, param: str) -> None:
    try:
        _compile(pattern)
    except PatternError as error:
        message = f"The pattern {pattern!r} in {param} is invalid or uses look-around or back-references."
        raise Unsupported(message, param=param) from error


def _shortened(text: str) -> str:
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]}…{text[1 - half :]}"
