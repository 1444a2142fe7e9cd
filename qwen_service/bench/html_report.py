"""One self-contained page: the plots, the table, how it was measured. No script, nothing is fetched."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from qwen_service.bench.figures import NONE, count, in_unit, megabytes, number, tick
from qwen_service.bench.measurement import Measurement
from qwen_service.bench.report import Report
from qwen_service.bench.statistics import Ratio
from qwen_service.bench.summary import METRICS, Row, values_of
from qwen_service.bench.svg import Axis, Point, Series, line_chart

STYLE = Path(__file__).with_name("report.css")
KINDS = "abcdef"
SHOWN = ("ttft", "gap", "tps", "e2e")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the style below; a report may be sent around


def as_html(report: Report) -> str:
    title = " and ".join(f"{target.name}: {target.model}" for target in report.targets)
    style = STYLE.read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Bench of {escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{style}</style>'
        f"<main>{_head(report)}{_verdicts(report)}{_cards(report)}{_plots(report)}{_ratios(report)}{_table(report)}"
        f"{_failures(report)}{_how(report)}</main></html>\n"
    )


def _head(report: Report) -> str:
    lines = "".join(
        f'<p class="target"><i class="key {_kind(report, target.name)}"></i><b>{escape(target.name)}</b> '
        f"{escape(target.model)} <span>{escape(target.url)}, {escape(target.wire.name)} API{_beside(report, target.name)}</span></p>"
        for target in report.targets
    )
    return f"<header><h1>How fast it answers</h1>{lines}</header>"


def _beside(report: Report, name: str) -> str:
    rss = report.surroundings.peak_rss.get(name)
    heat = report.surroundings.peak_temperature.get(name)
    return (f", peak memory {megabytes(rss)}" if rss else "") + (f", card up to {heat:.0f} °C" if heat else "")


def _verdicts(report: Report) -> str:
    items = "".join(
        f'<li class="{"met" if verdict.met else "missed"}"><b>{"met" if verdict.met else "not met"}</b> '
        f"<code>{escape(verdict.requirement)}</code> measured {NONE if math.isnan(verdict.value) else f'{verdict.value:.4g}'}</li>"
        for verdict in report.verdicts
    )
    return f'<ul class="verdicts">{items}</ul>' if items else ""


def _cards(report: Report) -> str:
    """The few figures that answer most questions: of the first kind of prompt, one client."""
    first = report.rows[0] if report.rows else None
    if first is None:
        return ""
    rows = [row for row in report.rows if (row.scenario, row.clients) == (first.scenario, first.clients)]
    cards = "".join(
        f"<div><h2>{METRICS[name].label}</h2>{''.join(_big(report, row, name) for row in rows)}</div>"
        for name in ("ttft", "tps", "e2e")
    )
    return f'<p class="about">{escape(first.scenario)} prompts, {first.clients} at once, median</p><section class="cards">{cards}</section>'


def _big(report: Report, row: Row, name: str) -> str:
    value = in_unit(row.spreads[name].p50, METRICS[name].unit)
    return f'<p class="big {_kind(report, row.target)}">{value}</p>'


def _plots(report: Report) -> str:
    fewest = _fewest_clients(report)
    plots = [
        (
            "Time to first token",
            f"Share of the requests that had their first token by then, {fewest} at once.",
            _distribution(report, "ttft"),
        ),
        (
            "Time between tokens",
            f"Share of the gaps that were no longer than this, {fewest} at once.",
            _distribution(report, "gap"),
        ),
        (
            "Tokens over time",
            f"Each line is one request, {fewest} at once: how much of the reply was there when.",
            _tokens_over_time(report),
        ),
        ("Throughput over clients", "All clients together.", _throughput(report)),
    ]
    figures = "".join(
        f"<figure><figcaption><h2>{title}</h2><p>{text}</p></figcaption>{picture}</figure>"
        for title, text, picture in plots
        if picture
    )
    return f'<section class="plots">{figures}</section>'


def _distribution(report: Report, metric: str) -> str:
    series = []
    for target in report.targets:
        values = sorted(values_of(metric, _measurements(report, target.name)))
        points = [(value, (rank + 1) / len(values)) for rank, value in enumerate(values)]
        series.append(Series(target.name, [(values[0], 0.0), *points] if values else [], _kind(report, target.name)))
    title = f"Distribution of the {METRICS[metric].label}"
    return line_chart(title, series, Axis("", tick), Axis("of all", lambda share: f"{share * 100:.0f} %", high=1.0))


def _tokens_over_time(report: Report) -> str:
    """Of the longest replies, which is where there is something to see; at most 15 lines per target."""
    series = []
    for target in report.targets:
        good = [m for m in _measurements(report, target.name) if m.token_times]
        for measurement in sorted(good, key=lambda m: -m.tokens)[:15]:
            series.append(Series(target.name, _growth(measurement), _kind(report, target.name), thin=True))
    return line_chart("Tokens over time", series, Axis("since the request", tick), Axis("tokens", count))


def _growth(measurement: Measurement) -> list[Point]:
    each = measurement.tokens / len(measurement.token_times)
    return [(time - measurement.sent, each * (index + 1)) for index, time in enumerate(measurement.token_times)]


def _throughput(report: Report) -> str:
    clients = sorted({row.clients for row in report.rows})
    if len(clients) < 2:
        return ""
    series = []
    for target in report.targets:
        for scenario in dict.fromkeys(row.scenario for row in report.rows):
            rows = [r for r in report.rows if (r.target, r.scenario) == (target.name, scenario)]
            points = [(float(r.clients), r.throughput) for r in rows if not math.isnan(r.throughput)]
            label = f"{target.name}, {scenario}"
            series.append(Series(label, points, _kind(report, target.name), dots=True))
    return line_chart(
        "Throughput over clients",
        series,
        Axis("clients at once", count, ticks=[float(number) for number in clients]),
        Axis("tokens/s", count),
    )


def _ratios(report: Report) -> str:
    if not report.comparisons:
        return ""
    first = report.comparisons[0]
    names = list(first.ratios)
    head = "".join(f"<th>{METRICS[name].label if name in METRICS else name}" for name in names)
    rows = "".join(
        f"<tr><td>{comparison.scenario}<td>{comparison.clients}{''.join(_ratio(comparison.ratios[name]) for name in names)}"
        for comparison in report.comparisons
    )
    return (
        f"<h2>{escape(first.other)} / {escape(first.base)}</h2><p>Median of the paired rounds, and where it lies with 95 %"
        f' confidence. Pale: within the rounds\' own spread.</p><div class="wide"><table><tr><th>prompts<th>at once{head}{rows}</table></div>'
    )


def _ratio(ratio: Ratio) -> str:
    if ratio.count == 0:
        return f"<td>{NONE}"
    pale = "" if ratio.certain else ' class="pale"'
    return f"<td{pale}>{ratio.median:.3f} <small>{ratio.low:.3f} … {ratio.high:.3f}</small>"


def _table(report: Report) -> str:
    head = "".join(f"<th>{METRICS[name].label}<br><small>p50 / p95 / p99</small>" for name in SHOWN)
    rows = "".join(_row(report, row) for row in report.rows)
    return (
        '<h2>All figures</h2><div class="wide"><table><tr><th>prompts<th>at once<th>'
        f"{head}<th>throughput<br><small>tokens/s</small><th>queue wait<br><small>p50 / p95 / p99</small><th>prompt<th>cached<th>requests<th>failed{rows}</table></div>"
    )


def _row(report: Report, row: Row) -> str:
    spreads = "".join(f"<td>{_spread(row, name)}" for name in SHOWN)
    return (
        f'<tr><td>{escape(row.scenario)}<td>{row.clients}<td><i class="key {_kind(report, row.target)}"></i>{escape(row.target)}'
        f"{spreads}<td>{number(row.throughput)}<td>{_spread(row, 'queue')}<td>{count(row.prompt_tokens)}<td>{count(row.cached_tokens)}"
        f"<td>{row.requests}<td>{row.errors}"
    )


def _spread(row: Row, name: str) -> str:
    spread, unit = row.spreads[name], METRICS[name].unit
    if spread.count == 0:
        return NONE
    return f"{in_unit(spread.p50, unit)} <small>/ {in_unit(spread.p95, unit)} / {in_unit(spread.p99, unit)}</small>"


def _failures(report: Report) -> str:
    items = "".join(f"<li>{times} × {escape(text)}" for text, times in report.failures.items())
    return f"<h2>Failures</h2><ul>{items}</ul>" if items else ""


def _how(report: Report) -> str:
    plan = report.plan
    prompts = "; ".join(f"{scenario.name}: {scenario.what}" for scenario in plan.scenarios)
    return (
        f"<h2>How it was measured</h2><p>{report.begun:%Y-%m-%d %H:%M} on {escape(report.machine)}, {report.seconds:.0f} s."
        f" {plan.rounds} rounds after a warm-up, the servers taking turns; {', '.join(map(str, plan.clients))} clients at once;"
        f" at most {plan.sizes.answer} tokens per answer. {escape(prompts)}. Times are those of a client on this machine, from the"
        " last byte of the request to the arrival of each piece. Tokens per second count from the first token on, with the"
        " server's own count of tokens; its p95 is the speed that 95 % of the requests reach.</p>"
    )


def _measurements(report: Report, target: str) -> Sequence[Measurement]:
    """The good ones with the fewest clients: waiting in a line would hide what the server itself does."""
    fewest = _fewest_clients(report)
    return [m for batch in report.batches if (batch.target, batch.clients) == (target, fewest) for m in batch.good]


def _fewest_clients(report: Report) -> int:
    return min(report.plan.clients)


def _kind(report: Report, name: str) -> str:
    names = [target.name for target in report.targets]
    return KINDS[names.index(name) % len(KINDS)]
