"""What is said about the updates of a layer without their tensors, made once for each kind of layer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surm.structures.ways import MOST_PARTS, PLAIN, TRACED, Group, Parts


class Update(NamedTuple):
    """alpha S, which a layer adds to some rows of its weight.

    Attributes:
        rows: those of W that it updates.
        kernel: name of the kernel that writes S.
        generators: the tensors that the kernel writes S by.
        alpha: the factor.
        outer: whether the gradients of the generators are made from H = g^T x.
        way: name of the way that it acts in, see `surm.structures.ways`.
    """

    rows: slice
    kernel: str
    generators: Sequence[Tensor]
    alpha: float = 1.0
    outer: bool = False
    way: str = PLAIN


class Plan(NamedTuple):
    """All that is said about the updates of a layer, without tensors.

    Attributes:
        m: outputs of the layer.
        together: one product with W + D.
        groups: the updates in order; their generators follow each other in one flat list.
    """

    m: int
    together: bool
    groups: tuple[Group, ...]

    @property
    def is_plain(self) -> bool:
        """Whether no kernel of a GPU reads rows."""
        return all(group.way in (PLAIN, TRACED) for group in self.groups)

    def written(self) -> str:
        """As text: an operator of torch.library takes nothing nested, and a graph sees a constant."""
        groups = (":".join(map(str, group)) for group in self.groups)
        # By `if`, which a compiler guards: of sizes that may change, `together` is a symbol that str() cannot print.
        together = "True" if self.together else "False"
        return ";".join([str(self.m), together, *groups])


@lru_cache(maxsize=1024)
def read(plan: str) -> Plan:
    """The plan that `Plan.written` wrote."""
    m, together, *written = plan.split(";")
    groups = []
    for one in written:
        start, stop, parts, generators, kernel, alpha, outer, name = one.split(":")
        sizes = (int(start), int(stop), int(parts), int(generators))
        groups.append(Group(*sizes, kernel, float(alpha), outer == "True", name))
    return Plan(int(m), together == "True", tuple(groups))


Facts = tuple[int, int, str, float, bool, str, tuple[torch.Size, ...]]


def plan_of(m: int, together: bool, updates: Sequence[Update]) -> Plan:
    """Of a layer with m outputs."""
    facts = tuple(
        (rows.start, rows.stop, kernel, alpha, outer, name, tuple(tensor.shape for tensor in generators))
        for rows, kernel, generators, alpha, outer, name in updates
    )
    # torch.compile warns of a cache that it follows, and ignores it.
    return (_grouped if torch.compiler.is_compiling() else _remembered)(m, together, facts)


def _grouped(m: int, together: bool, updates: tuple[Facts, ...]) -> Plan:
    """Neighbours of one kind, size and alpha side by side: one product with x for all costs less than one for each."""
    groups: list[Group] = []
    last: tuple[Any, ...] = ()
    for start, stop, kernel, alpha, outer, name, shapes in updates:
        kind = (stop - start, kernel, alpha, outer, name, shapes)
        room = name in (PLAIN, TRACED) or not groups or groups[-1].parts < MOST_PARTS
        if groups and kind == last and groups[-1].stop == start and room:
            groups[-1] = groups[-1]._replace(stop=stop, parts=groups[-1].parts + 1)
        else:
            groups.append(Group(start, stop, 1, len(shapes), kernel, float(alpha), outer, name))
        last = kind
    return Plan(m, together, tuple(groups))


_remembered = lru_cache(maxsize=4096)(_grouped)  # by all that it depends on, so that nothing in it is ever stale


def with_tensors(plan: Plan, tensors: Sequence[Tensor]) -> list[tuple[Group, Parts]]:
    """Each group with the generators of its parts."""
    found: list[tuple[Group, Parts]] = []
    first = 0
    for group in plan.groups:
        size = group.generators
        stop = first + group.parts * size
        found.append((group, [tensors[start : start + size] for start in range(first, stop, size)]))
        first = stop
    return found
