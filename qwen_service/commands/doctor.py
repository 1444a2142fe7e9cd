"""qwen-service doctor: the report for people, or as JSON for a request for help. It holds no secrets."""

import argparse
import asyncio
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from qwen_service.commands.progress import add_models_dir_flags
from qwen_service.doctor.examination import configuration, examine
from qwen_service.doctor.finding import Finding
from qwen_service.doctor.host import Host

TEXT = "look for what may be wrong with this machine, the card and the models"


def add_doctor_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("doctor", help=TEXT, description=TEXT[0].upper() + TEXT[1:] + ".")
    parser.add_argument("--json", action="store_true", help="for a request for help")
    add_models_dir_flags(parser)
    parser.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> int:
    """1 when something fails, 0 when there are only warnings."""
    host = Host()
    settings, config = configuration(options.config, options.models_dir)
    findings = [config, *asyncio.run(examine(host, settings))]
    print(as_json(host, findings) if options.json else as_text(findings))
    return int(any(finding.level == "fail" for finding in findings))


def as_text(findings: list[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:4}  {finding.area:9}  {finding.text}")
        if finding.cure:
            lines.append(f"{'':17}-> {finding.cure}")
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail")}
    lines.append(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} wrong")
    return "\n".join(lines)


def as_json(host: Host, findings: list[Finding]) -> str:
    report = {
        "version": _version(),
        "machine": host.model or host.machine.machine,
        "system": f"{platform.system()} {platform.release()}",
        "python": ".".join(map(str, host.python)),
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=1, ensure_ascii=False)


def _version() -> str:
    try:
        return version("qwen-service")
    except PackageNotFoundError:
        return "checkout"
