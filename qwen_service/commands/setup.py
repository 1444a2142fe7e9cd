"""qwen-service setup: from nothing to a model that answers, step by step.

Every question can be answered by a flag; --yes gives the recommended answers. Each step is done completely or not at all,
so that Ctrl-C leaves nothing half done; the same command continues from there.
"""

import argparse
import asyncio
import os
import shutil
import sys
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from qwen_service.chat import Message, ReasoningDelta, TextDelta
from qwen_service.commands.offers import Offer, Space, offers, recommended
from qwen_service.commands.progress import add_models_dir_flags, add_progress_flag, sink_for
from qwen_service.commands.questions import Questions
from qwen_service.commands.settings import is_packaged, set_in_file
from qwen_service.commands.talk import LocalTalk, RemoteTalk, Talk
from qwen_service.config import ConfigError, load_settings, settings_file
from qwen_service.doctor.card import OUR_OWN, PCI_ID
from qwen_service.doctor.host import Host, Listener
from qwen_service.engines.choice import ModelChoice
from qwen_service.errors import ServiceError
from qwen_service.install.disk import free_bytes
from qwen_service.install.downloads import pull
from qwen_service.install.progress import human_bytes
from qwen_service.models.catalog import Catalog, same_name
from qwen_service.models.spec import ModelSpec
from qwen_service.process.child import run_tool
from qwen_service.settings import Settings

TOY = "smollm2-135m"
UNIT = "qwen-chat"
UNIT_TIMEOUT = 900.0  # seconds: it returns when the model answers
QUESTION = "In two sentences: what can a small language model be used for at home?"
LONGEST = 400  # pieces of the reply that are shown: a toy may go on until its context is full
STOPPED = "\nStopped. Nothing is half done; run the same command to continue."


def add_setup_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("setup", help="choose, install and try a model", description=__doc__)
    parser.add_argument("--model", metavar="NAME", help="install this model instead of asking which")
    offering = "where no model is installed: ask whether to choose one, and install a small one if not"
    parser.add_argument("--offer", action="store_true", help=offering)
    parser.add_argument("--yes", action="store_true", help="take the recommended answer to every question")
    parser.add_argument("--port", type=int, metavar="PORT", help="serve on this port; written to the settings")
    parser.add_argument(
        "--unit",
        choices=("auto", "yes", "no"),
        default="auto",
        help="start the systemd unit, now and at every start of the machine (default: ask where the package is installed)",
    )
    parser.add_argument("--question", default=QUESTION, metavar="TEXT", help="what to ask the model at the end")
    parser.add_argument("--no-question", action="store_true", help="ask the model nothing")
    add_models_dir_flags(parser)
    add_progress_flag(parser)
    parser.set_defaults(run=run_setup)


def install_first(settings: Settings, name: str | None) -> None:
    """Install a model, asking for one unless `name` is given, for a service that is about to start."""
    options = argparse.Namespace(model=name, progress="auto")
    Setup(options, Host(), Questions()).install(settings)


def run_setup(options: argparse.Namespace) -> int:
    try:
        setup = Setup(options, Host(), Questions(options.yes))
        return setup.offer() if options.offer else setup.run()
    except KeyboardInterrupt:
        print(STOPPED)
        sys.stdout.flush()
        os._exit(130)  # downloads that wait for a silent server would hold the process for a minute


@dataclass(frozen=True, slots=True)
class Setup:
    options: argparse.Namespace
    host: Host
    questions: Questions

    def run(self) -> int:
        settings = self._settings()
        file = settings_file(self.options.config)
        if is_packaged() and os.geteuid() != 0:
            raise ConfigError("The models and settings of the installed service belong to root: run setup with sudo.")
        self.show_machine(settings)
        spec = self.install(settings)
        changes = self._changes(settings, spec)
        if changes:
            set_in_file(file, changes)
            print(f"{file}: " + ", ".join(f"{key}: {value}" for key, value in changes.items()))
        served = self._start_unit()
        self._try(spec, served=served)
        self._show_next(load_settings({}, config_file=self.options.config), served=served)
        return 0

    def offer(self) -> int:
        """Offer a model; scripts/start_qwen.sh calls this at a terminal before it serves."""
        settings = self._settings()
        if not Catalog.load(settings.models_dir.expanduser()).chatting():
            if not self.questions.confirm("No model is installed yet. Choose one now? (no: a small toy, 98 MB)"):
                self.options.model = TOY
            self.install(settings)
        return 0

    def install(self, settings: Settings) -> ModelSpec:
        spec = self.choose(settings)
        with sink_for(self.options.progress) as sink:
            pull(spec, settings.models_dir.expanduser(), self.host.machine, sink)
        return spec

    def _settings(self, **flags: Any) -> Settings:
        return load_settings({"models_dir": self.options.models_dir, **flags}, config_file=self.options.config)

    def _space(self, settings: Settings) -> Space:
        return Space(self.host.machine.memory_kib()[0] * 1024, free_bytes(settings.models_dir.expanduser()))

    def show_machine(self, settings: Settings) -> None:
        space = self._space(settings)
        cards = len(self.host.pci_folders(PCI_ID))
        card = (
            f"{cards} on the bus, but no driver: run `qwen-service doctor`" if cards else "none: models run on the CPU"
        )
        if self.host.machine.has_npu:
            card = "its driver is loaded"
        name, python = self.host.model or self.host.machine.machine, ".".join(map(str, self.host.python))
        print(f"Machine  {name}, {human_bytes(space.memory)} of memory, Python {python}")
        print(f"Card     {card}")
        print(f"Disk     {human_bytes(space.disk)} free for {settings.models_dir}")
        for listener in self._strangers(settings.port, settings.runtime_port):
            print(f"Port     {listener.address} is taken by {listener.holder or 'a program of another user'}")

    def choose(self, settings: Settings) -> ModelSpec:
        catalog = Catalog.load(settings.models_dir.expanduser())
        if self.options.model:
            return catalog.find(self.options.model)
        space = self._space(settings)
        found = offers(catalog, self.host.machine, space)
        possible = [offer for offer in found if not offer.obstacle]
        best = recommended(found, self.host.machine, space)
        if best is None:
            raise ServiceError(f"No model fits this machine. {found[-1].spec.name}: {found[-1].obstacle}.")
        rows = [_row(offer) for offer in possible]
        print(f"\n   {'model':28} {'runs on':8} {'download':>9}  {'can':16} speed that was seen")
        for number, row in enumerate(rows, 1):
            print(f"{number:2} {row}{'   (recommended)' if possible[number - 1] is best else ''}")
        for obstacle in dict.fromkeys(offer.obstacle for offer in found if offer.obstacle):
            names = [offer.spec.name for offer in found if offer.obstacle == obstacle]
            print(f"   {f'{len(names)} more' if len(names) > 2 else ' and '.join(names)}: {obstacle}")
        return possible[self.questions.choose("\nWhich one?", rows, possible.index(best))].spec

    def _changes(self, settings: Settings, spec: ModelSpec) -> dict[str, str | int]:
        """The settings that must change so that this model is served."""
        changes: dict[str, str | int] = {}
        catalog = Catalog.load(settings.models_dir.expanduser())
        first = ModelChoice(settings.model_copy(update={"model": "auto"}), catalog, self.host.machine).first().name
        wanted = "auto" if first == spec.name else spec.name
        if settings.model not in (wanted, spec.name) and not same_name(settings.model, spec.name):
            changes["model"] = wanted
        port = self.options.port or self._free_port(settings.port)
        if port != settings.port:
            changes["port"] = port
        return changes

    def _free_port(self, port: int) -> int:
        if not self._strangers(port):
            return port
        other = next(p for p in range(port + 1, 65_535) if not self.host.listeners([p]))
        return other if self.questions.confirm(f"Port {port} is taken. Serve on {other}?") else port

    def _strangers(self, *ports: int) -> list[Listener]:
        """Other programs that listen on these ports."""
        return [entry for entry in self.host.listeners(ports) if not any(own in entry.holder for own in OUR_OWN)]

    def _start_unit(self) -> bool:
        systemctl = shutil.which("systemctl")
        can = is_packaged() and systemctl is not None and Path("/run/systemd/system").is_dir()
        if self.options.unit == "no" or (self.options.unit == "auto" and not can):
            return False
        if systemctl is None:
            raise ConfigError("--unit yes needs systemd, and this machine has no systemctl. Use --unit no.")
        question = "Serve the model now, and at every start of the machine?"
        if self.options.unit == "auto" and not self.questions.confirm(question):
            return False
        print(f"Starting {UNIT}; a card loads for up to two minutes ...", flush=True)
        for command in ("enable", "restart"):
            result = asyncio.run(run_tool([systemctl, command, UNIT], UNIT_TIMEOUT))
            if result.returncode != 0:
                said = result.output.strip()[-300:]
                raise ServiceError(f"systemctl {command} {UNIT} failed: {said} See `journalctl -u {UNIT}`.")
        return True

    def _try(self, spec: ModelSpec, *, served: bool) -> None:
        if self.options.no_question or not self.questions.confirm("\nAsk the model something now?"):
            return
        if spec.needs_npu and not served:
            seconds = f" in about {spec.load_seconds:.0f} s" if spec.load_seconds else ""
            print(f"Loading {spec.name} onto the card{seconds} ...", flush=True)
        print(f"\n> {self.options.question}", flush=True)
        # Log files of root in the service's folders would keep the service from writing its own.
        with TemporaryDirectory(prefix="qwen-setup-") as folder:
            settings = self._settings(model=spec.name, state_dir=folder, log_dir=folder)
            url = f"http://127.0.0.1:{settings.port}"
            talk = RemoteTalk(url) if served else LocalTalk(settings, self.host.machine)
            asyncio.run(show_answer(talk, self.options.question))

    def _show_next(self, settings: Settings, *, served: bool) -> None:
        page = f"http://127.0.0.1:{settings.port}/"
        if served:
            print(f"\nThe service runs; its chat page is {page}. Next: qwen-service chat, or an app (docs/clients.md)")
        else:
            print(f"\nNext: qwen-service serve, which has a chat page at {page}, or qwen-service chat")


def _row(offer: Offer) -> str:
    done = "installed" if offer.installed else offer.size
    return f"{offer.spec.name:28} {offer.place:8} {done:>9}  {offer.can:16} {offer.speed}"


async def show_answer(talk: Talk, question: str) -> None:
    """Print the reply as it arrives, then its speed; one piece of text counts as one token."""
    began = first = monotonic()
    pieces = 0
    try:
        await talk.open()
        began = monotonic()
        async with aclosing(talk.reply([Message("user", question)])) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta):
                    first = first if pieces else monotonic()
                    pieces += 1
                    print(event.text, end="", flush=True)
                if pieces == LONGEST:
                    print(" … (cut here)", end="", flush=True)
                    break
    finally:
        await talk.close()
    seconds = monotonic() - first
    rate = f", then about {(pieces - 1) / seconds:.0f} tokens/s" if pieces > 1 and seconds > 0 else ""
    print(f"\n(first word after {first - began:.1f} s{rate})")
