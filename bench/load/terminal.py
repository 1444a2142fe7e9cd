"""The report on the terminal, and the progress bar before it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bench.load.figures import NONE, count, megabytes, number, spread_lines
from bench.load.report import Report
from bench.load.requirements import Verdict
from bench.load.runner import Progress as OnProgress
from bench.load.statistics import Ratio
from bench.load.summary import METRICS, Comparison, Row

SHOWN = ("ttft", "gap", "tps", "e2e")
HEADS = {"ttft": "first\ntoken", "gap": "between\ntokens", "tps": "tokens\n/s", "e2e": "end to\nend"}
RATIOS = ("ttft", "gap", "tps", "e2e", "throughput")


@contextmanager
def progress_on(console: Console) -> Iterator[OnProgress]:
    """A bar on a terminal; nothing in a pipe."""
    if not console.is_terminal:
        yield lambda _what, _done, _total: None
        return
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=1)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def show(report: Report, console: Console) -> None:
    console.print()
    for target in report.targets:
        console.print(_heading(report, target.name, f"{target.model} at {target.url} ({target.wire.name})"))
    console.print()
    console.print(_table(report))
    for comparison in report.comparisons[:1]:
        console.print(_ratios(report, comparison))
    if report.interrupted:
        console.print(Text("Interrupted: these are the figures up to then.", style="yellow"))
    for text, times in report.failures.items():
        console.print(Text(f"{times} x {text}", style="red"))
    for verdict in report.verdicts:
        console.print(_verdict(verdict))


def _heading(report: Report, name: str, rest: str) -> Text:
    line = Text.assemble((name, "bold"), "  ", rest)
    if (rss := report.surroundings.peak_rss.get(name)) is not None:
        line.append(f"  peak memory {megabytes(rss)}", style="dim")
    if (heat := report.surroundings.peak_temperature.get(name)) is not None:
        line.append(f"  card up to {heat:.0f} °C", style="dim")
    return line


def _table(report: Report) -> Table:
    table = _plain_table()
    table.caption = (
        "Median, and below it p95/p99 (of tokens/s the slow end). In all: the tokens of all clients together."
    )
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in SHOWN:
        table.add_column(HEADS[name], justify="right", no_wrap=True)
    table.add_column("in all\n/s", justify="right", no_wrap=True)
    table.add_column("prompt\ncached", justify="right", no_wrap=True)
    table.add_column("asked\nfailed", justify="right", no_wrap=True)
    before = None
    for row in report.rows:
        here = (row.scenario, row.clients)
        table.add_row("" if here == before else _what(*here), *_cells(row))
        before = here
    return table


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", caption_justify="left")


def _what(scenario: str, clients: int) -> str:
    return f"{scenario} ×{clients}"


def _cells(row: Row) -> list[Text]:
    return [
        Text(row.target, style="bold"),
        *(_spread(row, name) for name in SHOWN),
        Text(number(row.throughput)),
        _two(count(row.prompt_tokens), count(row.cached_tokens)),
        Text.assemble(str(row.requests), "\n", (str(row.errors), "red" if row.errors else "dim")),
    ]


def _two(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _spread(row: Row, name: str) -> Text:
    spread, unit = row.spreads[name], METRICS[name].unit
    return _two(*spread_lines(spread.p50, (spread.p95, spread.p99), unit)) if spread.count else Text(NONE)


def _ratios(report: Report, first: Comparison) -> Table:
    table = _plain_table()
    table.title = f"\n{first.other} / {first.base}"
    table.title_justify = "left"
    table.caption = (
        "Median of the paired rounds; below, where it lies with 95 % confidence. Dim: no certain difference."
    )
    table.add_column("", no_wrap=True)
    for name in RATIOS:
        table.add_column(HEADS.get(name, name), justify="right", no_wrap=True)
    for comparison in report.comparisons:
        cells = [_ratio(comparison.ratios[name]) for name in RATIOS]
        table.add_row(_what(comparison.scenario, comparison.clients), *cells)
    return table


def _ratio(ratio: Ratio) -> Text:
    if ratio.count == 0:
        return Text(NONE)
    median = (f"{ratio.median:.3f}", "bold" if ratio.certain else "dim")
    return Text.assemble(median, "\n", (f"{ratio.low:.3f}…{ratio.high:.3f}", "dim"))


def _verdict(verdict: Verdict) -> Text:
    value = NONE if verdict.value != verdict.value else f"{verdict.value:.4g}"
    mark, style = ("met", "green") if verdict.met else ("NOT MET", "bold red")
    return Text.assemble((mark, style), f"  {verdict.requirement}  (measured {value})")
