"""Peak memory of a step, counted by hand."""

import pytest
import torch
from torch import nn

from surm.training.memory import measure_added, measure_peak

CPU = torch.device("cpu")
ACCELERATOR = torch.accelerator.current_accelerator() or CPU
KIB = 256  # float32 numbers in a KiB


def test_the_peak_is_the_largest_sum_alive_at_once() -> None:
    x = torch.zeros(4 * KIB)
    with measure_added(CPU) as peak:
        y = x + 1  # 4 KiB
        z = torch.cat([y, y])  # 8 KiB: 12 beside x
        del y, z
        w = x * 2  # 4 KiB
    assert peak.bytes == 12 * 1024
    del w


def test_views_and_in_place_results_take_nothing() -> None:
    x = torch.zeros(4 * KIB)
    with measure_added(CPU) as peak:
        x.view(2, -1).add_(x[0].item())
    assert peak.bytes == 0


def test_what_is_held_before_counts_once() -> None:
    """Tied weights, a buffer that is a view, gradients, and two moments of Adam."""
    module = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    module[1].weight = module[0].weight
    module.register_buffer("first", module[0].weight.detach()[:1])
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    with measure_peak(module, optimizer, CPU) as peak:
        pass
    weight, step = 32 * 32 * 4, 4
    assert peak.bytes == 4 * weight + step


@pytest.mark.parametrize("device", sorted({CPU, ACCELERATOR}, key=str), ids=str)
def test_a_training_step_holds_what_the_backward_pass_needs(device: torch.device) -> None:
    """Two linear layers with a ReLU: B=4096, n=64, no biases; a weight is small beside an activation."""
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(4096, 64, device=device)
    with measure_peak(module, optimizer, device) as peak:
        y = module(x)
        y.backward(torch.ones_like(y))
        optimizer.step()
    activation = 4096 * 64 * 4
    if device.type == "mps":
        assert peak.bytes is None
        return
    assert peak.bytes is not None
    held = activation if device.type != "cpu" else 0  # x, which an accelerator's allocator knows
    # Both hidden activations (before ReLU it is freed, or not yet), the output, its gradient, and the hidden gradient.
    assert 4 * activation <= peak.bytes - held <= 5 * activation
