"""A switch of models, told step by step to who asked for it."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from qwen_service.engines.manager import ModelManager

INTERVAL = 0.1  # seconds between two looks; a card takes minutes


@dataclass(frozen=True, slots=True)
class Step:
    """`state`: waiting (for another switch), draining, stopping, loading; at the end that of the model."""

    model: str
    state: str
    progress: str = ""


async def switch_steps(models: ModelManager, name: str) -> AsyncGenerator[Step, None]:
    """What is being done, each step once. Raises what ModelManager.load() raises; closing it is leaving the switch."""
    wanted = models.installed_model(name).name
    switch = asyncio.create_task(models.load(name), name=f"switch to {wanted}")
    told: Step | None = None
    try:
        while not (await asyncio.wait({switch}, timeout=INTERVAL))[0]:
            if (step := _now(models, wanted)) != told:
                yield (told := step)
        model = switch.result()
        yield Step(model.name, model.phase)
    finally:
        switch.cancel()
        await asyncio.wait({switch})


def _now(models: ModelManager, wanted: str) -> Step:
    if models.switching_to != wanted:
        why = f"a switch to {models.switching_to} is going on" if models.switching_to else ""
        return Step(wanted, "waiting", why)
    if (old := models.leaving) is not None:
        if old.users:
            return Step(wanted, "draining", f"requests to {old.name} that are running: {old.users}")
        return Step(wanted, "stopping", old.name)
    new = models.current
    return Step(wanted, new.phase, new.progress) if new is not None else Step(wanted, "loading")
