"""The service under chaos: the real one, with the simulator of a vendor's program in place of the card.

python -m tests.chaos.target llamacpp|ax_repl|ax_api|axllm FOLDER
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_service.app import create_app
from qwen_service.commands.serve import run
from qwen_service.config import load_settings
from qwen_service.engine import BringUp
from qwen_service.engines.loaders import Loaders, loaders_for
from qwen_service.engines.simulation import simulated
from qwen_service.models.catalog import axllm_model
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtimes.axera import bring_up as card_loading
from qwen_service.runtimes.axllm import bring_up as axllm_loading
from qwen_service.settings import Settings

SIMULATORS = Path(__file__).parent.parent / "simulators"
MODELS = {"ax_repl": "qwen2.5-1.5b-instruct", "ax_api": "qwen3-4b"}


def settings_for(folder: Path) -> Settings:
    common: dict[str, Any] = {
        "port": 0,
        "host": "127.0.0.1",
        "state_dir": folder / "state",
        "models_dir": folder / "models",
        "model_path": folder / "model.gguf",
        "log_file": "/dev/full",  # a disk without room, all the time
        "tokenizer_port": 0,
        "runtime_port": int(os.environ.get("SIM_PORT", "8000")),
        "queue_timeout": 30,
        "stall_timeout": 3,
        "head_timeout": 3,
        "body_timeout": 3,
        "write_timeout": 3,
        "grace_time": 3,
        "axcl_smi": str(SIMULATORS / "axcl-smi"),
        "npu_recovery": "reboot",
        "npu_reboots_per_hour": 60,
        "npu_timeout": 1,
        "threads": 1,
        "slots": 2,
        "context_size": 512,
    }
    return load_settings(common)


def loaders(target: str) -> Loaders:
    def load(model: InstalledModel, settings: Settings, machine: Machine) -> dict[str, BringUp]:
        if target == "llamacpp":
            return loaders_for(model, settings, machine)
        if target == "axllm":
            return axllm_loading.loaders(_axllm(settings.state_folder / "axllm"), settings, machine)
        return card_loading.loaders(_at_full_speed(simulated(MODELS[target], settings)), settings, machine)

    return load


def _at_full_speed(model: InstalledModel) -> InstalledModel:
    """Without the simulator's own flags, which come last and make it as slow as a card."""
    programs = {
        kind: replace(program, arguments=program.arguments[: program.arguments.index("--token-ms")])
        for kind, program in model.spec.programs.items()
    }
    return replace(model, spec=replace(model.spec, programs=programs))


def _axllm(folder: Path) -> InstalledModel:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"filename_post_axmodel": "post.axmodel", "template_filename_axmodel": "l%d.axmodel", "axmodel_num": 2}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("post", "l0", "l1"):
        (folder / f"{name}.axmodel").touch()
    shutil.copy(SIMULATORS / "axllm", folder / "axllm")
    return axllm_model(folder)


if __name__ == "__main__":
    settings = settings_for(Path(sys.argv[2]))
    sys.exit(run(create_app(settings, loaders=loaders(sys.argv[1])), settings))
