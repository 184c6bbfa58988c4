"""Layers that read one input, as an attention's query, key and value do, computed by the first of them that is called.

    y_i = x (W_i + D_i)^T + b_i  for all i at once:  D of all formed together, H = [g_1 g_2 ...]^T x in one product

Each of the others is called as ever, and takes its own y if it is given the very same x, and nothing that y depends on
has changed. Where one is given anything else, or is not called, they go apart from then on: that costs one needless
product and no wrong number.
They have one backward pass: where two of them end in losses of their own, the first `backward` needs retain_graph=True.

A few rows gain by it, where most of a step is what Python and the dispatcher take; so it is for few, and was measured
on a CPU alone. It is off where somebody else must see each layer's own computation: hooks of a layer, hooks for saved
tensors (a checkpoint computes again what it finds then, and would find other tensors), torch.compile, autocast.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surm.structures import Structure
from surm.structures.autocast import autocasts
from surm.structures.backends import choose, updates
from surm.structures.ops import updated_linears
from surm.structures.plan import Update

NAMES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
"""What models call the layers of an attention; those of them that are adapted are siblings."""
MOST_ROWS = 1024

Chosen = Sequence[tuple[str, int, Structure]]
"""The structures that act on a layer's input, each with its adapter and its part."""


class Ready(NamedTuple):
    """Outputs that wait for their layers' calls.

    Attributes:
        x: the input that they were computed from.
        version: how often it had been changed in place.
        outputs: by place among the siblings, each with what else it was computed from, as `_origin` says it.
    """

    x: Tensor
    version: int
    outputs: dict[int, tuple[Tensor, tuple[Any, ...]]]


class Siblings:
    """Layers of one module (`SurmLinear`) that it is expected to call with one tensor, in any order."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)
        self.apart = False
        self.ready: Ready | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"ready": None}  # of a copy

    def output(self, layer: Any, x: Tensor, chosen: Chosen) -> Tensor | None:
        """y of a layer, in which these structures act on x, or None: it computes its own."""
        place = next((place for place, one in enumerate(self.layers) if one is layer), None)
        if self.apart or place is None:  # the layer is a copy for another device
            return None
        ready, self.ready = self.ready, None
        if ready is None:
            return self._all_outputs(place, x) if _is_possible(x) else None
        y, origin = ready.outputs.pop(place, (None, None))
        if ready.x is not x or ready.version != x._version or y is None or origin != _origin(layer, x, chosen):
            self.apart = True
            return None
        if ready.outputs:
            self.ready = ready
        return y

    def _all_outputs(self, place: int, x: Tensor) -> Tensor | None:
        found = [layer.frozen_parts(x) for layer in self.layers]
        if any(part is None for part in found):
            return None
        parts = [part for part in found if part is not None]
        adapters = [[name for name, _, _ in chosen] for chosen, _ in parts]
        if any(names != adapters[0] for names in adapters) or any(weight.dtype != x.dtype for _, weight in parts):
            return None
        structures = [structure for chosen, _ in parts for _, _, structure in chosen]
        backends = frozenset(
            layer.backend[name] for layer, names in zip(self.layers, adapters, strict=True) for name in names
        )
        choice = choose(structures, x, x.dtype, exact=True, backends=backends)
        if choice.fft or not choice.together:
            return None
        listed: list[Update] = []
        ways, first = list(choice.ways), 0
        for layer, (chosen, _) in zip(self.layers, parts, strict=True):
            starts = list(accumulate(layer.parts.values(), initial=first))
            for name, index, structure in chosen:
                own = updates(structure, x, slice(starts[index], starts[index + 1]), layer.alpha[name], ways)
                ways = ways[len(own) :]
                listed += own
            first = starts[-1]
        biases: list[Tensor | None] = [layer.base_layer.bias for layer in self.layers]
        found_outputs = updated_linears(x, [weight for _, weight in parts], biases, listed)
        origins = [_origin(layer, x, chosen) for layer, (chosen, _) in zip(self.layers, parts, strict=True)]
        outputs = dict(enumerate(zip(found_outputs, origins, strict=True)))
        y, _ = outputs.pop(place)
        self.ready = Ready(x, x._version, outputs)
        return y


def _is_possible(x: Tensor) -> bool:
    here = x.device.type == "cpu" and not x.is_inference()
    exact = x.dtype in (torch.float32, torch.float64) and not autocasts(x)
    rows = x.numel() // max(1, x.shape[-1])
    return here and exact and rows <= MOST_ROWS and torch.is_grad_enabled() and not _saved_tensors_are_hooked()


def _saved_tensors_are_hooked() -> bool:
    """Whether somebody packs what autograd saves; true of a torch that does not tell, which has no public way to."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


def _origin(layer: Any, x: Tensor, chosen: Chosen) -> tuple[Any, ...]:
    """What y depends on beside x: alpha, and tensors by where their numbers lie and how often they were written."""
    base = layer.base_layer
    tensors = [base.weight, base.bias, *(factor for _, _, structure in chosen for factor in structure.factors())]
    written = [
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors if tensor is not None
    ]
    return autocasts(x), torch.is_grad_enabled(), written, [layer.alpha[name] for name, _, _ in chosen]


def introduce(model: nn.Module, kind: type[nn.Module]) -> None:
    """Make siblings of the adapted layers, which are of this class, of each attention that has them apart."""
    for module in model.modules():
        children = dict(module.named_children())
        for names in NAMES:
            found = [children[name] for name in names if name in children]
            layers: list[Any] = [layer for layer in found if isinstance(layer, kind)]
            if len(layers) > 1 and len({layer.columns for layer in layers}) == 1:
                siblings = Siblings(layers)
                for layer in layers:
                    layer.siblings = siblings
