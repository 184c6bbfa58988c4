"""Look-up by a name that a user typed."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def look_up(registry: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry called `name`; otherwise `ValueError`, one sentence with the nearest valid name and all of them."""
    if name in registry:
        return registry[name]
    nearest = difflib.get_close_matches(name, registry, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    raise ValueError(f"There is no {kind} {name!r}: choose one of {', '.join(registry)}{hint}")
