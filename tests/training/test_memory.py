"""Peak memory counts tensors, exactly."""

import torch
from torch import nn

from surm.training.memory import LiveTensors, measure_peak

KIB = 256  # float32 numbers in a KiB


def test_the_peak_is_the_largest_sum_alive_at_once() -> None:
    x = torch.zeros(4 * KIB)
    with LiveTensors([x]) as live:
        y = x + 1  # 4 KiB
        z = torch.cat([y, y])  # 8 KiB: 16 alive
        del y, z
        w = x * 2  # 4 KiB: 8 alive
    assert live.peak == 16 * 1024
    assert live.now == 8 * 1024
    del w


def test_views_and_in_place_results_are_not_counted_twice() -> None:
    x = torch.zeros(4 * KIB)
    with LiveTensors([x]) as live:
        x.view(2, -1).add_(1)
    assert live.peak == 4 * 1024


def test_a_training_step_holds_what_the_backward_pass_needs() -> None:
    """Two linear layers with a ReLU, counted by hand: B=64, n=32, no biases."""
    module = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(64, 32)
    with measure_peak(module, optimizer, torch.device("cpu")) as peak:
        module(x).sum().backward()
        optimizer.step()
    weight, activation = 32 * 32 * 4, 64 * 32 * 4
    assert peak.bytes is not None
    # Weights, the hidden activations, the output, and during the backward pass gradients of both.
    assert 2 * weight + 2 * activation <= peak.bytes <= 4 * weight + 6 * activation
