"""An adapter for each row of a batch: how the names reach the layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from surm.tuners.gate import gates
from surm.tuners.layer import BASE_MODEL, SurmLayer


@contextmanager
def pass_adapter_names(
    model: BaseTuner, *, adapter_names: Sequence[str] | None = None, **settings: Any
) -> Iterator[None]:
    """While open, all adapted layers of `model` are called with `adapter_names`, one for each row (None: not at all).

    Args:
        model: a `SurmModel`.
        adapter_names: names of adapters, or "__base__".
        settings: what the model or its `generate` is called with. As that repeats each input for the beams or the
            sequences to return, names are repeated too, but not for an encoder, which runs before.

    Raises:
        ValueError: the model is in training mode, no layer has an adapter of that name, or an adapter has a gate.
    """
    if adapter_names is None:
        yield
        return
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    layers = [module for module in model.modules() if isinstance(module, (SurmLayer, AuxiliaryTrainingWrapper))]
    known = {name for layer in layers if isinstance(layer, SurmLayer) for name in layer._get_available_adapters()}
    unknown = set(adapter_names) - known - {BASE_MODEL}
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
    gated = {gate.adapter for _, _, gate in gates(model)}
    if gated:
        raise ValueError(f"Cannot pass `adapter_names` where an adapter has a gate, as {gated.pop()!r} has.")
    repeated = [name for name in adapter_names for _ in range(_repeats(settings))]
    encoder = set(_encoder(model.model).modules())
    handles = [
        layer.register_forward_pre_hook(
            partial(_with_names, adapter_names=list(adapter_names) if layer in encoder else repeated), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_names(module: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str]) -> Any:
    return args, kwargs | {"adapter_names": adapter_names}


def _repeats(settings: dict[str, Any]) -> int:
    """How often `generate` repeats each input."""
    config = settings.get("generation_config")
    counts = [settings.get(name) or getattr(config, name, None) for name in ("num_beams", "num_return_sequences")]
    return max([count for count in counts if isinstance(count, int)], default=1)


def _encoder(model: Any) -> nn.Module:
    """The encoder of an encoder-decoder model, else an empty module."""
    encoder: nn.Module | None = model.get_encoder() if hasattr(model, "get_encoder") else None
    # Since transformers 5 a model without an encoder gives itself.
    return nn.Module() if encoder is None or encoder is model else encoder
