"""Weights for an adapter from a file: which are refused, and how the model is then what it was before."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


def check_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], adapter: str) -> None:
    """Refuse what is not the adapter's.

    Raises:
        ValueError: one sentence; names or shapes are not those of the adapter, or a number is not finite.
    """
    wrong = sorted(
        key
        for key in expected.keys() | given.keys()
        if key not in expected or key not in given or expected[key].shape != given[key].shape
    )
    if wrong:
        shapes = [tuple(of[wrong[0]].shape) if wrong[0] in of else "not there" for of in (given, expected)]
        raise ValueError(
            f"The weights are not those of the adapter {adapter!r} that its configuration describes: {wrong[0]} is "
            f"{shapes[0]} in the file and {shapes[1]} in the adapter ({len(wrong)} such): give the adapter_config.json "
            "that was saved with the weights."
        )
    broken = sorted(key for key, tensor in given.items() if not torch.isfinite(tensor).all())
    if broken:
        raise ValueError(
            f"The weights for the adapter {adapter!r} are not finite: {broken[0]} holds NaN or infinity ({len(broken)} "
            "such): give those of a training that did not diverge."
        )


class Fresh(NamedTuple):
    """An adapter that a configuration from a file has put into a model, before its weights are loaded."""

    flags: list[tuple[nn.Parameter, bool]]  # what was trained before
    versions: list[tuple[Tensor, int]]  # of the adapter's parameters
    unwatch: Callable[[], None]  # takes the hooks off that came with it

    @classmethod
    def of(
        cls,
        flags: list[tuple[nn.Parameter, bool]],
        parameters: Iterable[Tensor],
        unwatch: Callable[[], None],
    ) -> "Fresh":
        return cls(flags, [(parameter, _version(parameter)) for parameter in parameters], unwatch)

    def is_untouched(self) -> bool:
        """Whether nothing was written to the parameters since: what is trained is never taken away."""
        return all(_version(parameter) == version for parameter, version in self.versions)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
