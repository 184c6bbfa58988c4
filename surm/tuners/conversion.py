"""How well LoRA of a given rank would stand for an adapter."""

from collections.abc import Iterable

import torch
from torch import nn

from surm.tuners.layer import SurmLinear


@torch.no_grad()
def conversion_error(model: nn.Module, ranks: Iterable[int], adapter_name: str = "default") -> dict[int, float]:
    """By rank, the error of what `peft.convert_to_lora` makes of an adapter in weight form, over all its layers.

    It keeps the leading singular values of each update: sqrt(sum of the squares of the others / sum of all squares).
    O(out_features in_features min(out_features, in_features)) a layer, once for all ranks.

    Raises:
        ValueError: no linear layer has such an adapter, or its updates are all zero.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SurmLinear) and adapter_name in layer.alpha]
    energies = [torch.linalg.svdvals(layer.get_delta_weight(adapter_name)).double().square() for layer in layers]
    total = sum(float(energy.sum()) for energy in energies)
    if not total:
        raise ValueError(f"No linear layer has an update called {adapter_name!r} that is not zero: name a trained one.")
    return {rank: (sum(float(energy[rank:].sum()) for energy in energies) / total) ** 0.5 for rank in ranks}
