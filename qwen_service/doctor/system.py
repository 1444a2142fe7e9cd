"""Checks the computer itself: Python, processor, memory, disk, clock, ports, configuration, service user."""

import importlib.util
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from qwen_service.doctor.card import OUR_OWN
from qwen_service.doctor.finding import Finding, fail, ok, warn
from qwen_service.doctor.host import Host
from qwen_service.install.disk import free_bytes
from qwen_service.install.progress import human_bytes
from qwen_service.settings import Settings

NEEDED_PYTHON = (3, 11)
NEEDED_MODULES = ("fastapi", "uvicorn", "uvloop", "httptools", "tokenizers", "jinja2", "orjson", "xllamacpp")
SERVICE_USER = "qwen"
BUILT_AFTER = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # a clock before this is wrong


def examine_system(host: Host, settings: Settings) -> Iterator[Finding]:
    yield _python(host)
    yield from _modules()
    yield from _processor(host, settings)
    yield _memory(host)
    yield _disk(settings.models_dir)
    yield _clock(host)
    yield from _ports(host, settings)
    yield _user(host)


def _python(host: Host) -> Finding:
    version = ".".join(map(str, host.python))
    if host.python >= NEEDED_PYTHON:
        return ok("python", f"Python {version}")
    return fail("python", f"Python {version} is too old", "Use Debian 12 (Bookworm) or newer: Python 3.11 is needed.")


def _modules() -> Iterator[Finding]:
    missing = [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        cure = "Run scripts/setup.sh, or install the package anew."
        yield fail("python", f"Missing packages: {', '.join(missing)}", cure)
    else:
        yield ok("python", f"all {len(NEEDED_MODULES)} packages with compiled parts are here")


def _processor(host: Host, settings: Settings) -> Iterator[Finding]:
    name = host.model or host.machine.machine
    flags = set(host.text("proc/cpuinfo").split())
    match host.machine.arch:
        case "arm64" if "asimddp" in flags and settings.llama_server is None:
            yield warn(
                "processor",
                f"{name} has dot-product instructions that the built-in llama.cpp does not use",
                "For CPU models: `qwen-service build-engine` builds one that does and sets llama_server.",
            )
        case "x86_64" if flags and "avx2" not in flags:
            cure = "Choose a small model, or a newer machine."
            yield warn("processor", f"{name} has no AVX2: CPU models are slow", cure)
        case "arm64" | "x86_64":
            yield ok("processor", name)
        case _:
            text = f"there are no engines for the processor {host.machine.machine}"
            yield fail("processor", text, "Use a 64-bit ARM or x86 system.")


def _memory(host: Host) -> Finding:
    total, available = host.machine.memory_kib()
    figures = f"{human_bytes(available * 1024)} of {human_bytes(total * 1024)} memory are free"
    if total and available * 1024 < 500_000_000:
        return warn("memory", figures, "Stop other programs, or add swap: the smallest CPU model wants about 0.5 GB.")
    return ok("memory", figures)


def _disk(models_dir: Path) -> Finding:
    free = free_bytes(models_dir)
    figures = f"{human_bytes(free)} are free on the disk of {models_dir}"
    if free < 100_000_000:
        return fail("disk", figures, "Make room: logs and models need it.")
    if free < 2_000_000_000:
        return warn("disk", figures, "The models of a card need 1.5 to 5.7 GB; models_dir may lie on another disk.")
    return ok("disk", figures)


def _clock(host: Host) -> Finding:
    shown = datetime.fromtimestamp(host.now, UTC).isoformat(timespec="minutes")
    if host.now < BUILT_AFTER:
        cure = "Set the time (`sudo timedatectl set-ntp true`): downloads fail with a wrong clock."
        return fail("clock", f"the clock is wrong: it says {shown}", cure)
    return ok("clock", shown)


def _ports(host: Host, settings: Settings) -> Iterator[Finding]:
    uses = {settings.port: "the service", settings.tokenizer_port: "its tokenizer", settings.runtime_port: "a runtime"}
    uses.setdefault(11434, "Ollama's clients, if you let the service listen there")
    taken = host.listeners(list(uses))
    for listener in taken:
        yield _port(listener.address, listener.holder, uses[listener.port])
    free = [str(port) for port in uses if port not in {listener.port for listener in taken}]
    if free:
        yield ok("ports", f"{', '.join(free)} are free")


def _port(address: str, holder: str, use: str) -> Finding:
    if any(name in holder for name in OUR_OWN):
        return ok("ports", f"{address} is held by this service: {holder}")
    if "/m5stack/" in holder:
        return warn(
            "ports",
            f"{address}, wanted for {use}, is held by M5Stack's StackFlow: {holder}",
            "Its units: `systemctl list-units 'llm-*'`; `sudo systemctl disable --now UNIT` frees port and card.",
        )
    who = holder or "another user's program (run the doctor with sudo to see which)"
    cure = f"Stop it, or give {use} another port in config.yaml."
    return warn("ports", f"{address}, wanted for {use}, is held by {who}", cure)


def _user(host: Host) -> Finding:
    account = host.account(SERVICE_USER)
    if account is None:
        return ok("user", "not installed as a system service")
    device = host.root / "dev/axcl_host"
    if device.exists() and not account.may(device, 6):
        group = host.group_name(device.stat().st_gid)
        cure = f"sudo usermod -aG {group} {SERVICE_USER}, then restart the service."
        return fail("user", f"The user {SERVICE_USER} may not use {device}", cure)
    return ok("user", f"{SERVICE_USER} (uid {account.uid})")
