"""The table of `qwen-service cluster status`: one line per card, then each fault with its cure."""

from collections.abc import Iterable, Iterator, Sequence

from qwen_service.cluster.node_facts import EngineView, NodeView

HEADINGS = ("NODE", "CARD", "MODEL", "STATE", "CACHE", "TOKENS/S", "TEMP")
NOTHING = "-"
Row = dict[str, object]


def rows(nodes: Sequence[NodeView], engines: Sequence[EngineView]) -> list[Row]:
    """The rows: one per engine, and one per node without an engine."""
    known = {node.id: node for node in nodes}
    used = {engine.node for engine in engines}
    found = [_engine_row(engine, known.get(engine.node)) for engine in engines]
    return found + [_node_row(node) for node in nodes if node.id not in used]


def cells(row: Row) -> tuple[str, ...]:
    held = row["held_tokens"]
    rate, temperature = row["tokens_per_second"], row["temperature"]
    return (
        str(row["node"]),
        str(row["place"] or NOTHING),
        str(row["model"] or NOTHING),
        str(row["state"]),
        " + ".join(map(str, held)) + " tokens" if isinstance(held, list) and held else NOTHING,
        f"{rate:.1f}" if isinstance(rate, float) and rate else NOTHING,
        f"{temperature:g} C" if isinstance(temperature, int | float) else NOTHING,
    )


def faults(nodes: Sequence[NodeView], engines: Sequence[EngineView], model: str) -> Iterator[str]:
    """The faults, each a line that says what is wrong and what to do."""
    for node in nodes:
        if not node.alive:
            yield f"The node {node.address} is gone. Start it again there: qwen-service cluster start --join HEAD"
        elif node.fault:
            yield f"{node.address}: {node.fault}"
        elif node.facts is not None and node.facts.fault:
            yield f"{_name(node)}: {node.facts.fault}"
    able = {engine.node for engine in engines if engine.report is not None and engine.report.ready}
    if missing := [_name(node) for node in nodes if model and node.id not in able and _lacks(node, model)]:
        yield f"{model} is missing on {', '.join(missing)}. Install it there: qwen-service cluster pull {model}"
    versions = {node.facts.version for node in nodes if node.facts is not None}
    if len(versions) > 1:
        yield f"The nodes have different versions of qwen-service ({', '.join(sorted(versions))}): install the same one everywhere."
    if not engines:
        yield "No model is deployed. Deploy one: qwen-service cluster deploy --model NAME"
    if waiting := sum(not engine.node for engine in engines):
        yield f"Engines that wait for a free card: {waiting}. `replicas` asks for more cards than there are."
    yield from (f"{e.report.where}: {e.report.error}" for e in engines if e.report is not None and e.report.error)


def as_json(nodes: Sequence[NodeView], engines: Sequence[EngineView], model: str) -> dict[str, object]:
    return {
        "model": model,
        "nodes": [_node_json(node) for node in nodes],
        "cards": rows(nodes, engines),
        "faults": list(faults(nodes, engines, model)),
    }


def model_of(engines: Iterable[EngineView]) -> str:
    """The deployed model; empty while no engine has reported it."""
    return next((engine.report.model for engine in engines if engine.report is not None), "")


def _engine_row(engine: EngineView, node: NodeView | None) -> Row:
    report = engine.report
    if report is None:
        return _row(_name(node) if node else NOTHING, state=engine.state.lower())
    state = "paused" if report.paused else " ".join(filter(None, (report.phase, report.progress)))
    return _row(
        _name(node) if node else report.node,
        place=report.place,
        model=report.model,
        state=state,
        held_tokens=[cache.length for cache in report.held],
        running=report.running,
        tokens_per_second=float(report.tokens_per_second),
        temperature=report.temperature,
    )


def _node_row(node: NodeView) -> Row:
    temperatures = node.facts.temperatures if node.facts else ()
    state = "gone" if not node.alive else "no engine"
    return _row(
        _name(node),
        place=_count(node.cards),
        state=state,
        temperature=next((t for _, t in temperatures if t is not None), None),
    )


def _row(node: str, **values: object) -> Row:
    empty: Row = {"place": "", "model": "", "state": "", "held_tokens": [], "running": 0}
    return {"node": node, **empty, "tokens_per_second": 0.0, "temperature": None, **values}


def _count(cards: int) -> str:
    return f"{cards} cards" if cards > 1 else "1 card" if cards else ""


def _name(node: NodeView) -> str:
    return f"{node.facts.host} ({node.address})" if node.facts else node.address


def _lacks(node: NodeView, model: str) -> bool:
    """Whether the node needs the model and lacks it. The head needs it, too, for the tokenizer of the ingress."""
    return node.alive and (node.cards > 0 or node.is_head) and node.facts is not None and model not in node.facts.models


def _node_json(node: NodeView) -> Row:
    return {
        "id": node.id,
        "address": node.address,
        "alive": node.alive,
        "cards": node.cards,
        "host": node.facts.host if node.facts else None,
        "version": node.facts.version if node.facts else None,
        "models": list(node.facts.models) if node.facts else None,
        "fault": node.fault or (node.facts.fault if node.facts else ""),
    }
