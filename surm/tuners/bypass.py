"""Layers whose weight a model uses itself, without calling them: an update around such a layer would do nothing.

timm's BEiT, EVA-02 and Swin V2 do so, by `F.linear(x, self.qkv.weight, bias)`, and PyTorch's own attention with its
output projection. One forward pass tells, and only models whose source reads the weight of such a layer need it: all
others cost a look at the source.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def refuse_bypassed(model: nn.Module, layers: Iterable[str], run: Callable[[], Any]) -> None:
    """Refuse to adapt layers that a model bypasses.

    Args:
        model: with or without adapters; left as it is, its random numbers too.
        layers: full names of the layers, each with a `weight`.
        run: one forward pass of the model; called only if its source makes a layer suspect.

    Raises:
        ValueError: one sentence that names the first such layer.
    """
    if names := suspects(model, layers):
        training = {module: module.training for module in model.modules()}
        model.eval()  # dropout draws no number, statistics of batches stay
        try:
            with torch.no_grad(), _Observer(model, names) as observer, suppress(NotImplementedError):
                run()  # on the meta device some models fail half-way, as a mask has no values there
        finally:
            for module, mode in training.items():
                module.training = mode
        observer.refuse(type(model).__name__)


def watch(model: nn.Module, layers: Iterable[str]) -> Callable[[], None]:
    """Refuse layers that a model bypasses in its first forward pass, where no example of its input is at hand.

    Args and Raises: as `refuse_bypassed`, the error in that forward pass. A compiled pass is not watched.

    Returns:
        What ends the watch before that.
    """
    first = _First(suspects(model, layers))
    if first.names:
        first.handles = [
            model.register_forward_pre_hook(first.enter),
            model.register_forward_hook(first.leave, always_call=True),
        ]
    return first.end


def suspects(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The layers whose weight the source of the module around them, or of its base classes, reads by name."""
    found = []
    for name in layers:
        parent, _, child = name.rpartition(".")
        kinds = type(model.get_submodule(parent)).__mro__
        files = {kind.__module__ for kind in kinds if issubclass(kind, nn.Module) and kind is not nn.Module}
        if any(_reads_weight(file, child) for file in files):
            found.append(name)
    return found


@cache
def _reads_weight(file: str, child: str) -> bool:
    """Whether the source of a module by this name reads the weight of a layer called `child`."""
    try:
        source = inspect.getsource(sys.modules[file])
    except (OSError, TypeError, KeyError):  # typed at a prompt, or compiled: a forward pass will tell
        return True
    return re.search(rf"\.{re.escape(child)}\.weight\b", source) is not None


class _Observer(TorchFunctionMode):
    """Notes which layers are called, and whose weights enter a function that gives a tensor.

    Asking for a weight's shape or type, as T5 does, is no use of it.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.modules = {name: model.get_submodule(name) for name in names}
        self.names = {id(module.weight): name for name, module in self.modules.items()}
        self.called, self.used = set[str](), set[int]()
        self.hooks: list[Any] = []

    def __enter__(self) -> "_Observer":
        for name, module in self.modules.items():
            self.hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.called.add(name)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        if any(isinstance(value, Tensor) for value in tree_leaves(result)):
            self.used |= given & self.names.keys()
        return result

    @property
    def bypassed(self) -> list[str]:
        return [name for weight, name in self.names.items() if weight in self.used and name not in self.called]

    def refuse(self, model: str) -> None:
        if layers := self.bypassed:
            raise ValueError(
                f"{model} uses the weight of {layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''} "
                "without calling the layer, so that an update around it would have no effect: choose other layers or "
                "another model."
            )


class _First:
    """The hooks around a model's first forward pass, which remove themselves."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.handles: list[Any] = []
        self.observer: _Observer | None = None

    def enter(self, model: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling() and self.observer is None:
            self.observer = _Observer(model, self.names)
            self.observer.__enter__()

    def leave(self, model: nn.Module, _: Any, output: Any) -> None:
        if self.observer is None:
            return
        observer, self.observer = self.observer, None
        observer.__exit__(None, None, None)
        self.end()
        observer.refuse(type(model).__name__)

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()
