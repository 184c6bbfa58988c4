"""Parameters of several parts in one launch: each part has pointers of its own, so that nothing is copied together."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from surm.structures.ways import MOST_PARTS

_MISSING = [(None,) * missing for missing in range(MOST_PARTS)]


def pointers(parts: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
    """The first parameter of each of MOST_PARTS parts, then the last of each; None behind the parts."""
    missing = _MISSING[MOST_PARTS - len(parts)]
    return [*(part[0] for part in parts), *missing, *(part[-1] for part in parts), *missing]


@triton.jit
def chosen(p0, p1, p2, p3, part, PARTS: tl.constexpr):
    """The pointer of a part."""
    pointer = p0
    if PARTS > 1:
        if part == 1:
            pointer = p1
    if PARTS > 2:
        if part == 2:
            pointer = p2
    if PARTS > 3:
        if part == 3:
            pointer = p3
    return pointer
