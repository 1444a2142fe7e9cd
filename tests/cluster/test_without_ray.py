"""Who has no cluster neither needs nor loads Ray."""

import subprocess
import sys

import pytest

LOADED = """
import importlib, pkgutil, sys
import qwen_service
for module in pkgutil.walk_packages(qwen_service.__path__, "qwen_service."):
    if not module.name.startswith({left_out!r}):
        importlib.import_module(module.name)
print([name for name in sys.modules if name.partition(".")[0] in ("ray", "grpc", "aiohttp")])
"""


@pytest.mark.parametrize("names", [("app", "cli"), ("cluster.settings", "cluster.ranking")])
def test_these_modules_load_nothing_of_ray(names: tuple[str, ...]) -> None:
    script = "import importlib, sys\n" + "".join(f"importlib.import_module('qwen_service.{name}')\n" for name in names)
    script += "print([name for name in sys.modules if name.partition('.')[0] in ('ray', 'grpc', 'aiohttp')])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_all_of_the_package_but_the_cluster_loads_without_ray() -> None:
    left_out = ("qwen_service.cluster", "qwen_service.__main__")
    script = LOADED.format(left_out=left_out)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
