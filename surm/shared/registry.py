"""Look-up by a name that a user typed."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Entry = TypeVar("Entry")


def look_up(registry: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry called `name`; otherwise `ValueError`, one sentence with the nearest valid name and all of them."""
    if name in registry:
        return registry[name]
    close = nearest(name, registry)
    hint = f"; did you mean {close}?" if close else "."
    raise ValueError(f"There is no {kind} {name!r}: choose one of {', '.join(registry)}{hint}")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is probably a misspelling of, or None."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return close[0] if close else None


def hint(name: str, allowed: Sequence[str]) -> str:
    """The end of a sentence that refuses a name: the nearest valid one, if there is one."""
    close = nearest(name, allowed)
    return f"; did you mean {close}?" if close else "."
