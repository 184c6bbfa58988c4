"""Modules whose parameters accelerate keeps elsewhere, on the CPU or a disk, and brings for each call.

It leaves the parameters on the device "meta" and puts a hook around `forward`. So what reads a parameter without such a
call, as the products of structures do, has to call the hooks itself.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Never

import torch
from torch import Tensor, nn


def _hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks of a module that bring its parameters."""
    hook = vars(module).get("_hf_hook")
    return [one for one in getattr(hook, "hooks", [hook]) if getattr(one, "offload", False)]


def call_device(module: nn.Module) -> torch.device | None:
    """Where a module computes whose parameters are kept elsewhere; None for any other module."""
    device = next((hook.execution_device for hook in _hooks(module)), None)
    if device is None:
        return None
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def parameters_here(module: nn.Module) -> AbstractContextManager[None]:
    """Bring the parameters of a module and of those in it, as accelerate does it for a call.

    The tensors are copies, so that a gradient would be lost; asking for one is an error.
    """
    hooked = [part for part in module.modules() if "_hf_hook" in vars(part)]
    return _brought(hooked) if hooked else nullcontext()


@contextmanager
def _brought(parts: list[nn.Module]) -> Iterator[None]:
    with ExitStack() as after:
        for part, hook in [(module, hook) for module in parts for hook in _hooks(module)]:
            hook.pre_forward(part)
            hook.offload = False  # a call in between finds them there
            after.callback(_send_back, part, hook)
            for parameter in part.parameters(recurse=False):
                if parameter.requires_grad and torch.is_grad_enabled():
                    parameter.register_hook(_refuse_gradient)  # type: ignore[no-untyped-call]
        yield


def _send_back(part: nn.Module, hook: Any) -> None:
    hook.offload = True
    hook.post_forward(part, None)


def _refuse_gradient(_: Tensor) -> Never:
    raise RuntimeError(
        "The parameters of an adapter are offloaded by accelerate, where they cannot be trained: offload the base "
        "model first and adapt it then."
    )
