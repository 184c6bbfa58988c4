"""Losses stay on a device that computes beside the host until they are read."""

import pytest
import torch

from surm.shared.errors import RunError
from surm.training.losses import Losses

ASYNCHRONOUS = torch.device("cuda")  # its name alone: the tensors here are the CPU's


def test_losses_are_read_together_and_the_first_bad_one_is_named() -> None:
    losses = Losses(ASYNCHRONOUS, rate=0.1)
    losses.add(1, torch.tensor(0.5))
    losses.add(2, torch.tensor(0.25))
    assert losses.read() == losses.last == 0.25
    assert losses.read() == 0.25  # none since
    for step, value in ((3, 2.0), (4, float("inf")), (5, float("nan"))):
        losses.add(step, torch.tensor(value))
    with pytest.raises(RunError, match=r"the loss is inf at step 4: lower optim\.lr=0\.1"):
        losses.read()


def test_on_a_cpu_each_is_read_at_once() -> None:
    losses = Losses(torch.device("cpu"), rate=0.1)
    losses.add(1, torch.tensor(0.5))
    assert losses.last == 0.5
    with pytest.raises(RunError, match="the loss is nan at step 2"):
        losses.add(2, torch.tensor(float("nan")))
