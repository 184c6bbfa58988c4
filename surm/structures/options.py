"""Options of the structures: their defaults and which values they take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option of a structure.

    Attributes:
        kind: type of its values.
        default: what it is where it is not given; None where `check_options` derives it from the size.
        accepts: whether a value is possible.
        rule: the rule in words that complete the sentence "give ...".
    """

    kind: type[Any]
    default: Any
    accepts: Callable[[Any], bool]
    rule: str


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(is_count(size) for size in value)


def count(default: int | None = 1) -> Option:
    """A positive integer, by default one."""
    return Option(int, default, is_count, "an integer of at least 1")


def one_of(*values: Any) -> Option:
    """One of the given values, by default the first."""

    def accepts(value: Any) -> bool:  # 1 == True in Python, so the type counts too
        return any(type(value) is type(allowed) and value == allowed for allowed in values)

    return Option(type(values[0]), values[0], accepts, " or ".join(str(value) for value in values))
