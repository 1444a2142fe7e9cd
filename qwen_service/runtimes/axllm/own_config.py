"""Makes a folder with links to the model's files and an extended config.json. The owner's folder is not changed."""

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_service.card.reading import card_reader
from qwen_service.models.axllm_shape import CONFIG, read_config
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.runtimes.axllm.slots import LOCATION, SLOTS, Room, chosen
from qwen_service.settings import Settings

log = logging.getLogger(__name__)

FOLDER = "axllm-config"  # in state_dir
SIZES = "slot-sizes.json"  # KiB of a slot by model, as reported by axllm
INTERNAL = frozenset({CONFIG, ".git"})


async def told_folder(
    model: InstalledModel, settings: Settings, machine: Machine, context: int, needed_kib: int
) -> Path:
    """The folder for axllm: the model's own, or an extended copy that sets the number of slots.

    `needed_kib`: memory on each card for the model itself.
    """
    folder = model.folder.absolute()
    config = config_of(folder)
    if settings.runtime_join or not config:
        return folder
    free = await _free_of_cards(settings, machine)
    card = None if free is None else free - needed_kib
    room = Room(card, machine.memory_kib()[1], known_slot_size(settings.state_folder, model.name))
    slots = chosen(config, room, context, wanted=settings.kv_cache_slots)
    if slots is None:
        return folder
    beside = (settings.state_folder / FOLDER / model.name).absolute()
    told = {**config, SLOTS: slots.count, LOCATION: slots.location}
    try:
        await asyncio.to_thread(lay_beside, folder, beside, told)
    except OSError as error:
        log.warning("%s cannot be written (%s): axllm keeps one conversation only", beside, error)
        return folder
    log.info("axllm is to keep %s (%d MiB of the card are free beside the model)", slots, (card or 0) // 1024)
    return beside


async def _free_of_cards(settings: Settings, machine: Machine) -> int | None:
    """Free KiB of the fullest card; None when one does not report it."""
    reading = await card_reader(settings, machine)()
    free = {card.index: card.cmm_free for card in reading.cards} if reading is not None else {}
    known = [kib for index in settings.devices if (kib := free.get(index)) is not None]
    return min(known) if len(known) == len(settings.devices) else None


def config_of(folder: Path) -> Mapping[str, Any]:
    """Read config.json; empty when it is missing or unreadable."""
    try:
        return read_config((folder / CONFIG).read_bytes()) or {}
    except OSError:  # axllm itself reports a missing file
        return {}


def lay_beside(model: Path, place: Path, config: Mapping[str, Any]) -> None:
    """Make the folder; files that axllm has written there stay. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        if old.is_symlink():
            old.unlink()
    for file in model.iterdir():
        if file.name not in INTERNAL and not (place / file.name).exists():
            (place / file.name).symlink_to(file.absolute())
    (place / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def known_slot_size(state: Path, model: str) -> int:
    """The size of a slot in KiB; 0: unknown."""
    return _sizes(state).get(model, 0)


def note_slot_size(state: Path, model: str, kib: int) -> None:
    sizes = _sizes(state)
    if kib and sizes.get(model) != kib:
        try:
            (state / FOLDER).mkdir(parents=True, exist_ok=True)
            (state / FOLDER / SIZES).write_text(json.dumps({**sizes, model: kib}))
        except OSError as error:
            log.warning("%s cannot be written: %s", state / FOLDER / SIZES, error)


def _sizes(state: Path) -> dict[str, int]:
    try:
        content = json.loads((state / FOLDER / SIZES).read_bytes())
        return {str(name): int(kib) for name, kib in content.items()}
    except OSError:  # no size was noted yet
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("%s does not have the expected form; a new file replaces it: %r", state / FOLDER / SIZES, error)
        return {}
