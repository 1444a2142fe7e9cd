"""Checks the `$ref`s of a JSON schema: each must point into the schema itself, and none may lead back to itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

Schema = Mapping[str, Any]

# Keywords whose schemas apply to the same value as their parent; a circle of these would never end.
SAME_VALUE_LISTS = ("allOf", "anyOf", "oneOf")
SAME_VALUE = ("not", "if", "then", "else")
MISSING = object()


def faulty_reference(root: Schema, parts: Sequence[Schema]) -> str | None:
    """Why some reference of `root` cannot be followed; None: all can. `parts` are all objects in `root`."""
    referring = [(part, ref) for part in parts if isinstance(ref := part.get("$ref"), str)]
    anchors = _anchors(parts) if referring else {}
    targets: dict[int, Any] = {}
    for part, reference in referring:
        target = _target(reference, root, anchors)
        if target is MISSING:
            return f"{reference[:200]!r} does not point into the schema, and nothing is fetched."
        targets[id(part)] = target
    # Every circle contains a reference.
    return "a $ref leads back to itself." if _has_circle((part for part, _ in referring), targets) else None


def _anchors(parts: Iterable[Schema]) -> dict[str, Schema]:
    """`#name` -> the schema that it points to: by its $anchor, or by its $id in the drafts before 2019."""
    anchors: dict[str, Schema] = {}
    for part in parts:
        for name in (part.get("$anchor"), part.get("$dynamicAnchor"), part.get("$id"), part.get("id")):
            if isinstance(name, str):
                anchors[name.lstrip("#")] = part
    return anchors


def _target(reference: str, root: Schema, anchors: Mapping[str, Schema]) -> Any:
    base, _, fragment = reference.partition("#")
    start: Any = root if not base else anchors.get(base, MISSING)
    if not fragment or start is MISSING:
        return start
    if not fragment.startswith("/"):
        return anchors.get(fragment, MISSING)
    for step in unquote(fragment[1:]).split("/"):
        start = _child(start, step.replace("~1", "/").replace("~0", "~"))
    return start


def _child(part: Any, step: str) -> Any:
    if isinstance(part, Mapping):
        return part.get(step, MISSING)
    if isinstance(part, list) and step.isdecimal() and len(step) < 6 and int(step) < len(part):
        return part[int(step)]
    return MISSING


def _has_circle(parts: Iterable[Schema], targets: Mapping[int, Any]) -> bool:
    done: set[int] = set()
    for start in parts:
        if id(start) in done:
            continue
        on_the_way = {id(start)}
        trail = [(start, _applied(start, targets))]
        while trail:
            part, following = trail[-1]
            found = next((child for child in following if id(child) not in done), None)
            if found is None:
                trail.pop()
                on_the_way.discard(id(part))
                done.add(id(part))
            elif id(found) in on_the_way:
                return True
            else:
                on_the_way.add(id(found))
                trail.append((found, _applied(found, targets)))
    return False


def _applied(part: Schema, targets: Mapping[int, Any]) -> Iterator[Schema]:
    """The schemas that apply to the same value."""
    candidates = [targets.get(id(part)), *(part.get(keyword) for keyword in SAME_VALUE)]
    for keyword in SAME_VALUE_LISTS:
        if isinstance(listed := part.get(keyword), list):
            candidates += listed
    if isinstance(dependent := part.get("dependentSchemas"), Mapping):
        candidates += dependent.values()
    return (candidate for candidate in candidates if isinstance(candidate, Mapping))
