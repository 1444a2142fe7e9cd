"""JSON schemas that clients send: checked before they reach an engine, and what a reply is checked with.

They are data from strangers: bounded in size and depth, references stay inside (nothing is fetched), and no
pattern can hang the service: regular expressions run in linear time, in the engine of pydantic's core.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from jsonschema import SchemaError, ValidationError, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator
from pydantic_core.core_schema import str_schema
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from qwen_service.errors import InvalidRequest, RequestTooLarge, Unsupported

MAX_BYTES = 64 * 1024
MAX_DEPTH = 48
MAX_REFERENCES = 10_000  # followed in one check: a few lines of nested allOf can ask for 2**30
MAX_MESSAGE = 400  # characters

# Their patterns are matched by a backtracking engine, out of our reach.
UNSUPPORTED = ("patternProperties", "unevaluatedProperties", "$dynamicRef", "$recursiveRef")

Schema = Mapping[str, Any]


def check_schema(schema: Schema, param: str) -> None:
    """Raises a RequestError that names `param`, the field of the request in which the schema came."""
    try:
        size = len(orjson.dumps(schema))
    except TypeError as error:  # half a surrogate pair, an absurd number, nested too deeply
        raise InvalidRequest(f"Invalid schema in {param}: {error}.", param=param) from error
    if size > MAX_BYTES:
        raise RequestTooLarge(f"The schema in {param} is longer than {MAX_BYTES} bytes.", param=param)
    for part in _parts(schema, param):
        if isinstance(reference := part.get("$ref"), str):
            _check_reference(reference, schema, param)
    try:
        validators.validator_for(schema, default=Draft202012Validator).check_schema(dict(schema))
        first_error(schema, None)
    except SchemaError as error:
        raise InvalidRequest(f"Invalid schema in {param}: {_describe(error)}", param=param) from error
    except RecursionError as error:
        raise InvalidRequest(f"Invalid schema in {param}: a $ref leads back to itself.", param=param) from error


def check_enforceable(schema: Schema, param: str) -> None:
    """On top of check_schema, where replies are held to the schema: only what we can check."""
    for part in _parts(schema, param):
        for keyword in UNSUPPORTED:
            if keyword in part:
                raise Unsupported(f"The schema in {param} uses {keyword}, which is not supported.", param=param)
        if isinstance(pattern := part.get("pattern"), str):
            _check_pattern(pattern, param)


def first_error(schema: Schema, value: Any) -> str | None:
    """The most telling reason why `value` does not satisfy the schema, for a person or a model to read."""
    error = best_match(_validator(schema).iter_errors(value))
    return None if error is None else _describe(error)


def json_error(text: str, schema: Schema | None) -> str | None:
    """Why `text` is not JSON, or not JSON of this schema; any object satisfies None."""
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
    """Every object in it, the schema first."""
    found: list[Schema] = []
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        found += [part for part in level if isinstance(part, Mapping)]
        level = [child for part in level for child in _children(part)]
        if not level:
            return found
    raise RequestTooLarge(f"The schema in {param} is nested deeper than {MAX_DEPTH} levels.", param=param)


def _children(part: object) -> Iterator[Any]:
    if isinstance(part, Mapping):
        yield from part.values()
    elif isinstance(part, list | tuple):
        yield from part


def _check_reference(reference: str, root: Schema, param: str) -> None:
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(dict(root)))
    try:
        resolver.lookup(reference)
    except Unresolvable as error:
        message = f"{reference!r} in {param} does not point into the schema, and nothing is fetched."
        raise InvalidRequest(message, param=param) from error


def _check_pattern(pattern: str, param: str) -> None:
    try:
        _compile(pattern)
    except PatternError as error:
        message = f"The pattern {pattern!r} in {param} is invalid or uses look-around or back-references."
        raise Unsupported(message, param=param) from error


def _describe(error: ValidationError | SchemaError) -> str:
    text = f"{error.json_path}: {error.message}"
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]}…{text[1 - half :]}"
