"""A model's answers to the examples of a split, and what they score."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from surm.data import Task
from surm.data.metrics import compute_metrics


@dataclass
class Answers:
    """Of every example label, prediction (classes or values) and loss; the metrics over all of them with their loss."""

    labels: list[float] = field(default_factory=list)
    predictions: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def task_loss(task: Task, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (B, classes) in nats, or the squared error of values (B, 1); "none": of each example."""
    if task.regression:
        return mse_loss(logits.squeeze(-1), labels, reduction=reduction)
    return cross_entropy(logits, labels, reduction=reduction)


@torch.no_grad()
def evaluate(
    task: Task, batches: Iterable[dict[str, Tensor]], logits: Callable[[dict[str, Tensor]], Tensor], gather: Any
) -> Answers:
    """Answer a split.

    Args:
        task: says whether answers are classes or values, and which metrics count.
        batches: inputs with their `labels`.
        logits: the model, in evaluation mode.
        gather: collects what the processes of a run have each, without examples that fill up the last batch.
    """
    pairs = []
    for batch in batches:
        truth = batch.pop("labels")
        pairs.append(gather((logits(batch), truth)))
    answers, labels = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))  # waits for the device once
    predictions = (answers.squeeze(-1) if task.regression else answers.argmax(-1)).tolist()
    metrics = compute_metrics(task.metrics, labels.tolist(), predictions)
    metrics = metrics | {"loss": task_loss(task, answers, labels).item()}
    return Answers(labels.tolist(), predictions, task_loss(task, answers, labels, "none").tolist(), metrics)
