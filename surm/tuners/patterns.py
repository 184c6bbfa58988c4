"""Settings by module name, and the ways to split a fused projection, as a configuration states them."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from surm.structures.options import is_count

FUSED_PARTS = ("q", "k", "v")  # of a fused projection, in the order of the weight's rows
RESERVED = ("update", "adapter", "dropout")  # `surm_<name>` of these is something else

Split = int | list[int] | list[list[Any]]  # equal parts; their sizes; their names and sizes
Value = TypeVar("Value")


def matching(patterns: Mapping[str, Value] | None, name: str, missing: Value | None = None) -> Value | None:
    """The value for a module's full name, or `missing`; a key is its ending or a regular expression of it, as in PEFT.

    Of several keys that match, the longest counts, since a saved configuration does not keep their order.
    """
    keys = [key for key in patterns or {} if re.match(rf"(.*\.)?({key})$", name)]
    return patterns[max(keys, key=lambda key: (len(key), key))] if patterns and keys else missing


def check_patterns(name: str, patterns: Any) -> None:
    """Raises ValueError unless `patterns`, the field `name`, is None or a dictionary by expressions of module names."""
    if patterns is None:
        return
    if not isinstance(patterns, dict) or not all(isinstance(key, str) for key in patterns):
        raise ValueError(f"{name}={patterns!r} is not a dictionary by module names: give one such as {{'query': ...}}.")
    for key in patterns:
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{name}: {key!r} is no regular expression of module names ({error}).") from None


def as_splits(fused: Any) -> dict[str, Split] | None:
    """The field `fused` in the form that is saved: names with sizes are pairs, since JSON's keys lose their order.

    Raises:
        ValueError: a value is no number of parts, no list of sizes and no sizes by name.
    """
    check_patterns("fused", fused)
    return None if fused is None else {key: _as_split(key, value) for key, value in fused.items()}


def _as_split(key: str, value: Any) -> Split:
    if is_count(value):
        return int(value)
    pairs = [list(pair) for pair in value.items()] if isinstance(value, dict) else value
    if isinstance(pairs, (list, tuple)) and pairs:
        if all(is_count(size) for size in pairs):
            return list(pairs)
        named = all(isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_part(*pair) for pair in pairs)
        if named and len({name for name, _ in pairs}) == len(pairs):
            return [list(pair) for pair in pairs]
    raise ValueError(
        f"fused: {value!r} for {key!r} is no split: give a number of equal parts, a list of sizes, or sizes by name, "
        f"integers of at least 1 and names of letters, digits and '_' other than {', '.join(RESERVED)}."
    )


def part_names(split: Split) -> list[str]:
    """The names of a split's parts: q, k and v where three have no names, else their numbers, from 0."""
    if isinstance(split, list) and isinstance(split[0], list):
        return [pair[0] for pair in split if isinstance(pair, list)]
    count = split if isinstance(split, int) else len(split)
    return list(FUSED_PARTS) if count == len(FUSED_PARTS) else [str(index) for index in range(count)]


def split_rows(split: Split, rows: int) -> dict[str, int]:
    """The parts of `rows` rows, with the number of rows of each, in order.

    Raises:
        ValueError: they do not add up.
    """
    names = part_names(split)
    if isinstance(split, int):
        if rows % split:
            raise ValueError(f"fused={split} equal parts do not divide {rows} outputs: give sizes that add up.")
        return dict.fromkeys(names, rows // split)
    sizes = [item[1] if isinstance(item, list) else item for item in split]
    if sum(sizes) != rows:
        raise ValueError(
            f"fused={sizes} adds up to {sum(sizes)}, not to the layer's {rows} outputs: correct the sizes."
        )
    return dict(zip(names, sizes, strict=True))


def _is_part(name: Any, size: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"\w+", name)) and name not in RESERVED and is_count(size)
