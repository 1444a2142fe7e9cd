"""Settings that were renamed: the old name still works, with a warning that gives the new one."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

# Old name -> new name. An entry stays for a year after the release that brought the new name. Empty so far.
RENAMED: Mapping[str, str] = {}


def with_new_names(
    values: Mapping[str, Any], source: str, spell: Callable[[str], str], renamed: Mapping[str, str]
) -> dict[str, Any]:
    """Replace old names by new ones. When both are given, the value of the new name counts."""
    found = {key: value for key, value in values.items() if key not in renamed}
    for old, value in values.items():
        if old in renamed:
            new = renamed[old]
            log.warning("%s: %s is now called %s; the old name is taken for now", source, spell(old), spell(new))
            found.setdefault(new, value)
    return found
