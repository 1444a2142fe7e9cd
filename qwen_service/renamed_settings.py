"""Settings that had another name once: the old one is still taken, with a warning that says the new one."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

# Old name -> name. An entry stays for a year after the release that brought the new name. None has been renamed so far.
RENAMED: Mapping[str, str] = {}


def with_new_names(
    values: Mapping[str, Any], source: str, spell: Callable[[str], str], renamed: Mapping[str, str]
) -> dict[str, Any]:
    """The same values under the names of today. Where both names are given, the new one counts."""
    found = {key: value for key, value in values.items() if key not in renamed}
    for old, value in values.items():
        if old in renamed:
            new = renamed[old]
            log.warning("%s: %s is now called %s; the old name is taken for now", source, spell(old), spell(new))
            found.setdefault(new, value)
    return found
