"""qwen-service doctor: the report for people, or as JSON for a request for help. It holds no secrets."""

import argparse
import asyncio
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from qwen_service.commands.progress import Commands, add_model_command
from qwen_service.doctor.examination import configuration, examine
from qwen_service.doctor.finding import Finding
from qwen_service.doctor.host import Host


def add_doctor_command(commands: Commands) -> None:
    parser = add_model_command(commands, "doctor", "look for what is wrong or slow, and tell the cure", run_doctor)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, for a request for help")


def run_doctor(options: argparse.Namespace) -> int:
    """Print the report. Returns 1 when something fails, 0 when there are only warnings."""
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
