"""What a model answers, and the loss of each answer."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from surm.data import Answers, Objective
from surm.data.labels import Classes, Values
from surm.training.evaluate import evaluate

SCORES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 2, 1, 0, 0])


class Given(nn.Module):
    """Gives the logits that it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def answers(objective: Objective, scores: np.ndarray, labels: np.ndarray, order: list[int] | None = None) -> Answers:
    rows = order or list(range(7))
    parts = [rows[:4], rows[4:]]  # two batches
    batches = [{"x": torch.tensor(scores[part]), "labels": torch.tensor(labels[part])} for part in parts]
    return evaluate(objective, batches, Given(), lambda found: found, order)


@pytest.mark.parametrize("order", [None, [6, 2, 0, 1, 5, 3, 4]])
def test_each_example_has_its_log_loss(order: list[int] | None) -> None:
    found = answers(Classes(("accuracy",)), SCORES, CLASSES, order)
    expected = -log_softmax(SCORES.astype(float), axis=1)[np.arange(7), CLASSES]
    assert found.losses == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.metrics["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert found.predictions == SCORES.argmax(axis=1).tolist()


def test_of_a_regression_it_is_the_squared_error() -> None:
    values = SCORES[:, 1].astype(np.float32)
    found = answers(Values(("spearman",)), SCORES[:, :1], values)
    assert found.losses == pytest.approx(((SCORES[:, 0] - values) ** 2).tolist(), rel=1e-4)
