"""The settings of a cluster: one YAML file, `cluster.yaml`. Needs no Ray."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen_service.config import ConfigError

APPLICATION = "qwen-service"  # its name in Ray Serve
FILE = Path("cluster.yaml")


def _setting(default: Any, text: str, **limits: Any) -> Any:
    return Field(default, description=text, **limits)


class ClusterSettings(BaseModel):
    """The deployment. Settings of single nodes (folders, cards, ports) stay in the config.yaml of each node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Name of the model, which every node has installed.")
    replicas: int = _setting(0, "Engines in the cluster. 0: one per card, or one per node on the CPU.", ge=0, le=10_000)
    replicas_on: Literal["card", "cpu"] = _setting("card", "What an engine runs on.")
    ingress_replicas: int = _setting(
        1, "Processes that answer HTTP; each has a waiting line of its own.", ge=1, le=1000
    )
    host: str = _setting("127.0.0.1", "Address of the proxy on the head. 0.0.0.0 opens it to the network.")
    port: int = _setting(8080, "Port of the proxy on the head.", ge=1, le=65_535)
    report_period: float = _setting(
        1.0, "Seconds between two reports of an engine: what its cache holds, its state.", ge=0.1, le=3600
    )
    longest_reply: float = _setting(
        900, "Seconds that running replies have to end when an engine is replaced or stopped.", gt=0, le=86_400
    )
    node_timeout: float = _setting(
        60, "An engine's process that does not answer Ray for so many seconds is replaced.", gt=0, le=86_400
    )
    service: dict[str, Any] = _setting(
        {}, "Settings of the service (docs/configuration.md) that all nodes have in common."
    )


def load_cluster_settings(file: Path = FILE, **given: Any) -> ClusterSettings:
    """Load the settings from `file`, if it exists; `given` values win. Raises ConfigError."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content or {}, dict):
        raise ConfigError(f"{file}: expected lines of the form `key: value`, found {type(content).__name__}.")
    try:
        return ClusterSettings(
            **{**(content or {}), **{key: value for key, value in given.items() if value is not None}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        field = ClusterSettings.model_fields.get(key)
        known = (field.description if field else None) or f"known are {', '.join(ClusterSettings.model_fields)}."
        raise ConfigError(f"{file}: {key}: {first['msg']}. {known}") from None
