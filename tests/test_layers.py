"""The import direction, as docs/architecture.md draws it."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = "qwen_service"

RUNTIMES = ("runtimes.llamacpp.runtime", "runtimes.axera.repl", "runtimes.axera.api", "runtimes.axllm.runtime")
# From the bottom to the top: what a module imports, directly or through others, never stands above itself.
SPINE = (
    ("errors", "chat"),
    (
        "settings",
        "config",
        "models.machine",
        "process.child",
        "text.tokenizer",
        "text.template",
        "models.catalog",
        "api.middleware",
    ),
    ("runtime",),
    ("text.output_parser", "runtimes.axera.tokenizer_server", "install.downloads"),
    RUNTIMES,
    ("engines.supervisor",),
    ("runtimes.llamacpp.bring_up", "runtimes.axera.bring_up", "runtimes.axllm.bring_up"),
    ("engines.served", "engines.choice"),
    ("engines.manager",),
    ("pipeline.scheduler", "pipeline.conversation"),
    ("pipeline.chat_completion",),
    ("audio.*",),
    ("service",),
    ("api.openai.*", "api.ollama.*", "api.anthropic.*"),
    ("app",),
    ("cluster.*",),
    ("cli", "commands.serve", "commands.chat", "__main__"),
)
MOST_LINES = {"file": 350, "function": 50}
HTTP_FRAMEWORKS = {"fastapi", "starlette", "uvicorn"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in PATHS.items()}


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(names: Iterator[str]) -> set[str]:
    inside = {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return inside & PATHS.keys()


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    return {name: own(found for node in ast.walk(tree) for found in imported(node)) for name, tree in trees().items()}


@cache
def libraries() -> dict[str, set[str]]:
    """The packages that each module imports."""
    return {
        name: {found.partition(".")[0] for node in ast.walk(tree) for found in imported(node)}
        for name, tree in trees().items()
    }


def reached(name: str) -> set[str]:
    """All that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = imports()[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def height(name: str) -> int | None:
    heights = [at for at, patterns in enumerate(SPINE) if any(fnmatch(name, pattern) for pattern in patterns)]
    return heights[0] if heights else None


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in PATHS.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES["file"]} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in lengths.items() if count > MOST_LINES["function"]} == {}


def test_the_server_does_not_know_the_dialects() -> None:
    """app.py puts them together."""
    shared = [name for name in PATHS if name.startswith("api.") and name.count(".") == 1]
    families = ("api.openai.", "api.ollama.", "api.anthropic.")
    assert {name: found for name in shared if (found := [n for n in reached(name) if n.startswith(families)])} == {}


def test_every_place_on_the_spine_is_taken() -> None:
    missing = [
        pattern for patterns in SPINE for pattern in patterns if not any(fnmatch(name, pattern) for name in PATHS)
    ]
    assert missing == []


@pytest.mark.parametrize("name", sorted(name for name in PATHS if height(name) is not None))
def test_imports_point_downwards(name: str) -> None:
    above = {other for other in reached(name) if (height(other) or 0) > (height(name) or 0)}
    assert above == set()


@pytest.mark.parametrize("module", ["app", "runtimes.llamacpp.bring_up", "runtimes.axera.bring_up"])
@pytest.mark.parametrize("library", ["huggingface_hub", "httpx", "httpx2", "rich"])
def test_what_takes_memory_and_is_seldom_used_is_not_imported_at_the_start(module: str, library: str) -> None:
    assert [name for name in reached(module) if library in libraries()[name]] == []


def test_imports_have_no_cycles() -> None:
    assert [name for name in PATHS if name in reached(name)] == []


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_knows_no_other_runtime(name: str) -> None:
    assert reached(name) & set(RUNTIMES) == set()


def test_the_dialects_do_not_know_each_other() -> None:
    families = {name.split(".")[1] for name in PATHS if name.count(".") == 2 and name.startswith("api.")}
    assert {"openai", "ollama", "anthropic"} <= families
    for family in families:
        members = [name for name in PATHS if name.startswith(f"api.{family}.")]
        strangers = {other for name in members for other in reached(name) if other.startswith("api.")}
        assert {other for other in strangers if other.split(".")[1] in families - {family}} == set()


def test_nothing_below_the_dialects_knows_an_http_framework() -> None:
    below = {"pipeline.chat_completion", *reached("pipeline.chat_completion")}
    assert [name for name in below if libraries()[name] & HTTP_FRAMEWORKS] == []


def test_pydantic_lives_where_something_is_read_from_outside_only() -> None:
    wire = ("api.admin", "api.wire", "api.*.wire*")
    settings = ("config", "settings", "cluster.settings", "commands.config_docs")
    manifests = ("models.manifest", "models.manifest_values", "models.spec")
    users = [name for name, others in libraries().items() if "pydantic" in others]
    assert [name for name in users if not any(fnmatch(name, known) for known in (*wire, *settings, *manifests))] == []


def test_processes_are_started_in_one_place() -> None:
    assert [name for name, others in libraries().items() if others & {"subprocess", "multiprocessing", "pty"}] == [
        "process.child"
    ]


def test_no_import_hides_in_a_function() -> None:
    functions = [
        (name, node)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    hidden = [name for name, function in functions for node in ast.walk(function) if list(imported(node))]
    assert hidden == []


def test_only_the_cluster_knows_ray() -> None:
    assert [name for name, others in libraries().items() if "ray" in others and not name.startswith("cluster.")] == []
