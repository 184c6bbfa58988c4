"""Peak memory of a step, counted by hand."""

import pytest
import torch
from torch import nn

from surm.training.memory import measure_added, measure_peak

CPU = torch.device("cpu")
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True) or CPU
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
        x.view(2, -1).add_(x.view(2, -1))
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
    if device.type == "mps":
        pytest.skip("MPS does not tell its peak")
    module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(4096, 64, device=device)

    def step() -> None:
        y = module(x)
        y.backward(torch.ones_like(y))
        optimizer.step()
        optimizer.zero_grad()

    step()  # libraries take their work space
    with measure_added(device) as added:
        step()
    weight, activation = 64 * 64 * 4, 4096 * 64 * 4
    assert added.bytes is not None
    # The hidden activation, the output, its gradient, and the hidden gradient after and before the ReLU.
    assert 5 * activation <= added.bytes <= 5 * activation + 2 * weight
    with measure_peak(module, optimizer, device) as peak:
        step()
    held = 2 * weight if device.type == "cpu" else torch.get_device_module(device).memory_allocated(device)
    assert peak.bytes == held + added.bytes
