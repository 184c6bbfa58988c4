"""The output layer of a language model, which can hand on the hidden states that it gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surm.shared.errors import ModelError

SAME = 1e-4  # how far logits may be from those of the output layer, relative to the largest


class OutputLayer(nn.Linear):
    """A Linear of a language model's hidden states, (.., n) to (.., words); handed on, its output is its input.

    Logits of all words at all places are the largest tensor of a training step: 49,152 words beside a width of 576.
    Whatever needs them a few places at a time takes the hidden states through the whole model, whatever is around it
    (PEFT, data parallel), and this layer's weight itself.
    """

    hands_on = False

    def forward(self, input: Tensor) -> Tensor:
        return input if self.hands_on else super().forward(input)

    def logits(self, states: Tensor) -> Tensor:
        """Of hidden states (rows, n): (rows, words)."""
        return linear(states, self.weight, self.bias)


def replace_output_layer(module: Any) -> None:
    """Make the output layer of a transformers model for causal language modelling an `OutputLayer`, of the same weight.

    Raises:
        ModelError: it is no Linear.
    """
    found = module.get_output_embeddings()
    if not isinstance(found, nn.Linear):
        raise ModelError(f"{type(module).__name__} has no linear output layer, so it cannot be trained on text.")
    layer = OutputLayer(found.in_features, found.out_features, bias=found.bias is not None, device="meta")
    layer.weight, layer.bias = found.weight, found.bias  # the embedding's own, where they are tied
    module.set_output_embeddings(layer)


@torch.no_grad()
def check_language_model(module: Any) -> None:
    """Refuse a model that cannot be trained on text here, by what it gives for five words; its layer is replaced.

    Raises:
        ModelError: a place sees what follows it, or the logits are not the output layer's.
    """
    name, was_training = type(module).__name__, module.training
    module.eval()
    words = torch.arange(1, 6)
    both = torch.stack([words, words.where(words < 5, 0)])  # two texts that differ in the last word
    with handing_on(module) as layer:
        states = module(input_ids=both).logits
    logits = module(input_ids=both[:1]).logits
    module.train(was_training)
    if not _close(*states[:, :-1]):
        raise ModelError(f"{name} sees the words that it is to predict: give a model with causal attention.")
    if not _close(layer.logits(states[:1]), logits):
        raise ModelError(f"{name} changes the output layer's logits, which is not supported: give another model.")


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= SAME * other.abs().max())


@contextmanager
def handing_on(module: nn.Module) -> Iterator[OutputLayer]:
    """Within, the `logits` of the language model in `module` are the hidden states (B, L, n) at its output layer."""
    layer = next(layer for layer in module.modules() if isinstance(layer, OutputLayer))
    layer.hands_on = True
    try:
        yield layer
    finally:
        layer.hands_on = False
