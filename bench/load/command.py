"""python -m bench.load: measure a chat server, alone or against another one.

Any server that speaks OpenAI's or Ollama's chat API: this service, Ollama, llama-server, vLLM, axllm.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import uvloop
from rich.console import Console

from bench.load.errors import BenchError
from bench.load.prompts import SCENARIOS, STANDARD, Scenario, Sizes
from bench.load.report import Report, as_json
from bench.load.requirements import PROFILES, Requirement, Verdict, judge, parse_requirement
from bench.load.runner import Plan, Results, run_plan
from bench.load.summary import comparisons, rows
from bench.load.target import Target, find_target
from bench.load.terminal import progress_on, show

NAMES = ("this", "other")
LONG_SHARE = 0.8  # of the context, for the long prompt and its answer
NOT_MET = 3  # exit status; 1 is a bench that could not be done, 2 a wrong option
INTERRUPTED = 130  # as a shell says it of Ctrl-C
DEFAULTS = {"prompts": ",".join(STANDARD), "tokens": 64, "clients": "1"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8080", help="the server to measure (default: %(default)s)")
    add("--vs", metavar="URL", help="a second server, measured in turns with the first; ratios are this / --vs")
    add("--model", help="model to ask for (default: the first one that is loaded)")
    add("--vs-model", metavar="MODEL", help="the same of --vs")
    add("--api", choices=("auto", "openai", "ollama"), default="auto", help="which API to speak (default: auto)")
    add("--vs-api", choices=("auto", "openai", "ollama"), default="auto", help="the same of --vs")
    add("--api-key-env", metavar="NAME", default="OPENAI_API_KEY", help="environment variable with the API key")
    add("--prompts", metavar="LIST", help=f"of {', '.join(SCENARIOS)} (default: {DEFAULTS['prompts']})")
    add("--clients", metavar="LIST", help="numbers of simultaneous clients, as 1,2,4 (default: 1)")
    add("--rounds", type=_positive, default=5, help="how often each prompt is asked per number of clients (default: 5)")
    add("--tokens", type=_positive, help="longest answer, in tokens (default: 64)")
    add(
        "--context",
        type=_positive,
        metavar="TOKENS",
        help="context to fill with the long prompt (default: the server's)",
    )
    add("--timeout", type=_positive, default=600, metavar="SECONDS", help="for one answer (default: 600)")
    add("--seed", type=int, default=1, help="another one asks other questions")
    add("--no-warm-up", action="store_true", help="measure from the first request on")
    add("--require", action="append", default=[], metavar="CONDITION", help="as ttft_p95<2s; not met: exit status 3")
    add("--profile", choices=sorted(PROFILES), help="; ".join(f"{n}: {p.what}" for n, p in PROFILES.items()))
    add("--json", type=Path, metavar="FILE", help="write every measurement; - is stdout, without the table")


def bench(options: argparse.Namespace) -> int:
    """Exit status 0, 3 when a requirement is not met, 130 when it was cut short. Raises BenchError."""
    _apply_profile(options)
    requirements = [parse_requirement(text) for text in options.require]
    to_stdout = str(options.json) == "-"
    console = Console(stderr=to_stdout, highlight=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_measure(options, requirements, console))
    if not to_stdout:
        show(report, console)
    _write(report, options, to_stdout=to_stdout)
    if report.interrupted:
        return INTERRUPTED
    return 0 if all(verdict.met for verdict in report.verdicts) else NOT_MET


async def _measure(options: argparse.Namespace, requirements: Sequence[Requirement], console: Console) -> Report:
    targets = await _targets(options)
    plan = _plan(options, targets)
    begun, clock = datetime.now().astimezone(), time.monotonic()
    with progress_on(console) as progress:
        results = await run_plan(plan, targets, progress)
    seconds = time.monotonic() - clock
    base = targets[-1].name if len(targets) > 1 else None
    return Report(
        begun=begun,
        seconds=seconds,
        plan=plan,
        targets=targets,
        batches=results.batches,
        rows=rows(results.batches),
        comparisons=comparisons(results.batches, base, targets[0].name) if base else [],
        surroundings=results.surroundings,
        verdicts=_verdicts(requirements, results, targets[0]),
        interrupted=results.interrupted,
    )


async def _targets(options: argparse.Namespace) -> list[Target]:
    key = os.environ.get(options.api_key_env)
    wanted = [(options.url, options.api, options.model)]
    if options.vs:
        wanted.append((options.vs, options.vs_api, options.vs_model))
    return [
        await find_target(name, url, api=api, model=model, api_key=key, timeout=options.timeout)
        for name, (url, api, model) in zip(NAMES, wanted, strict=False)
    ]


def _plan(options: argparse.Namespace, targets: Sequence[Target]) -> Plan:
    context = options.context or min(target.context for target in targets)
    sizes = Sizes(options.tokens, max(64, int(context * LONG_SHARE) - options.tokens))
    clients = _numbers(options.clients)
    return Plan(_scenarios(options.prompts), clients, options.rounds, sizes, not options.no_warm_up, options.seed)


def _scenarios(names: str) -> list[Scenario]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SCENARIOS]
    if unknown or not wanted:
        raise BenchError(f"--prompts: no prompts {', '.join(unknown) or 'given'}; there are {', '.join(SCENARIOS)}")
    return [SCENARIOS[name] for name in wanted]


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BenchError(f"--clients {text!r}: numbers with commas between them, as 1,2,4")
    return [int(part) for part in parts]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _apply_profile(options: argparse.Namespace) -> None:
    """What the command line says wins over the profile, the profile over the defaults."""
    profile = PROFILES.get(options.profile)
    for name, default in (DEFAULTS | dict(profile.options if profile else {})).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.require = [*(profile.requirements if profile else ()), *options.require]


def _verdicts(requirements: Sequence[Requirement], results: Results, target: Target) -> list[Verdict]:
    batches = [batch for batch in results.batches if batch.target == target.name]
    rss = results.surroundings.peak_rss.get(target.name)
    return [judge(requirement, batches, rss) for requirement in requirements]


def _write(report: Report, options: argparse.Namespace, *, to_stdout: bool) -> None:
    try:
        if to_stdout:
            print(as_json(report).decode())
        elif options.json:
            options.json.write_bytes(as_json(report))
    except OSError as error:
        raise BenchError(f"{error.filename}: cannot be written: {error.strerror}") from None
