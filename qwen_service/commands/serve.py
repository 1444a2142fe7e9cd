"""qwen-service serve: uvicorn on our sockets, with our settings."""

import argparse
import errno
import gc
import logging
import socket
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from qwen_service.api.access import is_loopback
from qwen_service.api.server import KEEP_ALIVE, ConnectionLimits, Server, guarded
from qwen_service.app import create_app
from qwen_service.commands.questions import Questions, at_terminal
from qwen_service.commands.settings import add_setting_flags, make_folders, settings_from
from qwen_service.config import ConfigError
from qwen_service.doctor.host import Host
from qwen_service.models.catalog import Catalog, is_called
from qwen_service.operation import logs
from qwen_service.process.instance_lock import AlreadyRunning, InstanceLock
from qwen_service.settings import Settings

log = logging.getLogger(__name__)


def add_serve_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("serve", help="run the service")
    add_setting_flags(parser)
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> int:
    settings = settings_from(options)
    offer_model(settings)
    return run(create_app(settings, read_settings=partial(settings_from, options)), settings)


def run(app: FastAPI, settings: Settings) -> int:
    """Serve until a signal says stop. Raises ConfigError."""
    make_folders(settings)
    logs.configure(settings.log_level, settings.log_format, settings.service_log, tokenizer_file=settings.tokenizer_log)
    lock = InstanceLock(settings.state_folder / "service.pid")
    try:
        lock.take()
    except AlreadyRunning as other:
        raise ConfigError(
            f"state_dir: {settings.state_folder} is in use by another qwen-service, process {other.pid}."
            " Stop that process, or give this service its own folder with --state-dir."
        ) from None
    except OSError as error:  # such as a network file system without locks
        log.warning("%s cannot be locked, so a second service could use it, too: %s", settings.state_folder, error)
    try:
        return _serve(app, settings, listen(settings))
    finally:
        lock.release()


def _serve(app: FastAPI, settings: Settings, sockets: list[socket.socket]) -> int:
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=guarded(
            ConnectionLimits(settings.head_timeout, settings.write_timeout),
            settings.max_connections_per_client,
            settings.trusted_proxies,
        ),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api/access.py reads them, from trusted proxies only
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=cast(int, settings.grace_time),  # a float does, and 0 is at once
    )
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if all(is_loopback(host) for host in settings.host):
        log.info(
            "Only this machine can connect; docs/operations.md tells how to open the service to the network (host)"
        )
    warn_of_exposure(settings)
    admin_socket = (settings.admin_socket or settings.state_folder / "admin.sock").expanduser()
    server = Server(config, admin_socket, begin_stop=app.state.begin_stop)
    gc.freeze()  # full collections skip what is loaded now: one took 45 ms on a slow machine, and would hold up the tokens
    server.run(sockets=sockets)
    return 0 if server.started else 1


def warn_of_exposure(settings: Settings) -> None:
    open_to = [host for host in settings.host if not is_loopback(host)]
    if open_to and settings.api_keys_file is None:
        log.warning(
            "The service is open to the network at %s without API keys: everybody there can use it and fill its queue."
            " Set api_keys_file, or set host to 127.0.0.1 (SECURITY.md)",
            ", ".join(open_to),
        )
    elif open_to:
        risk = "API keys and conversations travel unencrypted at %s: put a TLS proxy in front (SECURITY.md)"
        log.warning(risk, ", ".join(open_to))


def listen(settings: Settings) -> list[socket.socket]:
    """One socket per address and port. Raises ConfigError when a port is taken or none of the addresses exists here."""
    sockets = _listen(settings.host, settings.port)
    if settings.ollama_port:
        sockets += _listen(settings.host, settings.ollama_port)
    return sockets


def _listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    for host in hosts:
        try:
            listener = _bind(host, port)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(hosts) > 1:
                log.warning(
                    "The service cannot listen on %s, and goes on without this address: %s", host, error.strerror
                )
                continue
            raise ConfigError(
                f"The service cannot listen on {host}:{port}: {error.strerror}. {_cure(error, port)}"
            ) from None
        port = listener.getsockname()[1]
        sockets.append(listener)
    if not sockets:
        raise ConfigError(
            f"host: none of the addresses {', '.join(hosts)} exists on this machine; `ip address` lists those that do."
        )
    return sockets


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener


def _cure(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = next((f" ({entry.holder})" for entry in Host().listeners([port]) if entry.holder), "")
        return f"Another program has port {port}{holder}: stop it, or choose another port with --port."
    if error.errno == errno.EACCES:
        return "Ports below 1024 need privileges: choose another one with --port."
    return "Correct the setting host."


def offer_model(settings: Settings) -> None:
    """Ask at a terminal whether to install the model that is missing. Raises an InstallError when the download fails, and KeyboardInterrupt."""
    if not at_terminal() or settings.model_path or settings.simulate or settings.runtime_join:
        return
    catalog = Catalog.load(settings.models_dir.expanduser())
    installed = {model.name for model in catalog.chatting()}
    if settings.model == "auto":
        missing, name, question = not installed, None, "No model is installed yet. Choose one now?"
    else:
        known = (spec.name for spec in catalog.specs if is_called(spec, settings.model))
        name = next(known, None)
        missing, question = name is not None and name not in installed, f"{name} is not installed. Download it now?"
    if missing and Questions().confirm(question):
        # Imported when needed: the download code takes 20 MB of memory.
        import_module("qwen_service.commands.setup").install_first(settings, name)
