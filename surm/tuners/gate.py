"""What shared tensors do to the output of a block, beside the updates of its weights."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from surm.structures.shared import SharedTensors
from surm.tuners.layer import SurmLayer


class Gate:
    """A forward hook of what ends a block of BERT's kind: y becomes y + gate(a), with a the attention's output."""

    def __init__(self, adapter: str, layer: SurmLayer, tensors: SharedTensors, block: int) -> None:
        self.adapter, self.layer, self.tensors, self.block = adapter, layer, tensors, block

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        # The adapter of one of the block's layers is active if that of all is.
        if self.layer.disable_adapters or self.adapter not in self.layer.active_adapters:
            return None
        return output + self.tensors.gate(self.block, args[1]).to(output.dtype)


def add_gates(model: nn.Module, adapter: str, layers: dict[str, SurmLayer], tensors: SharedTensors) -> None:
    """Put the gates of an adapter's shared tensors at the ends of blocks.

    Args:
        layers: by the name of each block, in the order of the tensors' numbers, one of its adapted layers.

    Raises:
        ValueError: a block is not of BERT's kind, whose end gets the output of the attention beside its own input.
    """
    modules, ends = dict(model.named_modules()), dict[str, nn.Module]()
    for block in layers:
        end = modules.get(f"{block}.output", nn.Module())
        if not {"dense", "LayerNorm"} <= {name for name, _ in end.named_children()}:
            raise ValueError(
                f"gate=True needs blocks as those of BERT, and {block or type(model).__name__!r} has no output.dense "
                "with an output.LayerNorm behind it: leave it at False."
            )
        ends[block] = end
    for index, (block, layer) in enumerate(layers.items()):
        ends[block].register_forward_hook(Gate(adapter, layer, tensors, index))


def gates(model: nn.Module) -> Iterator[tuple[nn.Module, int, Gate]]:
    """All gates, each with its module and its number among the module's hooks."""
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if isinstance(hook, Gate):
                yield module, number, hook


def remove_gates(model: nn.Module, adapter: str | None = None) -> None:
    """Take off the gates of an adapter, or all."""
    for module, number, gate in gates(model):
        if adapter is None or gate.adapter == adapter:
            del module._forward_hooks[number]
