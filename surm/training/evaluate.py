"""A model's answers to the examples of a split, and what they score."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surm.data import Answers, Objective


@torch.no_grad()
def evaluate(
    objective: Objective,
    batches: Iterable[dict[str, Tensor]],
    module: nn.Module,
    gather: Any,
    order: Sequence[int] | None = None,
) -> Answers:
    """Answer a split.

    Args:
        objective: says what is answered, and which metrics count.
        batches: inputs with their `labels`.
        module: the model, in evaluation mode.
        gather: collects what the processes of a run have each, without examples that fill up the last batch.
        order: the examples' places in the split, where the batches have another order.
    """
    found = [gather(objective.answer(module, batch)) for batch in batches]
    answers = tuple(torch.cat(parts).cpu() for parts in zip(*found, strict=True))  # waits for the device once
    if order is not None:
        places = torch.argsort(torch.tensor(order))
        answers = tuple(part[places] for part in answers)
    return objective.score(answers)
