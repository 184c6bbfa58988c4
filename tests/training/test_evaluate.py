"""What a model answers, and the loss of each answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from surm.training.evaluate import evaluate

SCORES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 2, 1, 0, 0])


def answers(task: SimpleNamespace, scores: np.ndarray, labels: np.ndarray):
    parts = [slice(0, 4), slice(4, 7)]  # two batches
    batches = [{"x": torch.tensor(scores[part]), "labels": torch.tensor(labels[part])} for part in parts]
    return evaluate(task, batches, lambda batch: batch["x"], lambda pair: pair)


def test_each_example_has_its_log_loss() -> None:
    task = SimpleNamespace(regression=False, metrics=("accuracy",))
    found = answers(task, SCORES, CLASSES)
    expected = -log_softmax(SCORES.astype(float), axis=1)[np.arange(7), CLASSES]
    assert found.losses == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.metrics["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    assert found.predictions == SCORES.argmax(axis=1).tolist()


def test_of_a_regression_it_is_the_squared_error() -> None:
    task = SimpleNamespace(regression=True, metrics=("spearman",))
    values = SCORES[:, 1].astype(np.float32)
    found = answers(task, SCORES[:, :1], values)
    assert found.losses == pytest.approx(((SCORES[:, 0] - values) ** 2).tolist(), rel=1e-4)
