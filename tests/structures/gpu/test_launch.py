"""A launch takes the kernel that was compiled for what is given now."""

import pytest
import torch

from surm.structures.gpu import form, launch
from surm.structures.gpu.launch import Launcher
from tests.structures.gpu import DEVICE


class Compiled:
    """What Triton gives for the arguments of a first launch; later ones must be of their kinds."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, log, number):
        self.log, self.number = log, number

    def run(self, x, y, z, stream, function, metadata, data, enter, leave, *arguments):
        assert (stream, function, metadata) == (7, "function", "metadata")
        assert data is enter is leave is None
        self.log.append((self.number, (x, y, z), arguments))


class Kernel:
    """In the place of Triton's, which compiles at a first call."""

    def __init__(self):
        self.log, self.compiled = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.compiled.append((grid, arguments, options))
            return Compiled(self.log, len(self.compiled) - 1)

        return launch


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7, raising=False)
    return Kernel()


def aligned(count, dtype=torch.float32):
    return torch.zeros(count + 64, dtype=dtype)[:count]


def test_a_second_launch_asks_triton_for_nothing(kernel):
    launch, x, y = Launcher(kernel), aligned(8), aligned(8)
    launch((1, 2, 3), (x, None), (5, 0.5), (8, True), num_warps=4)
    launch((4, 5, 6), (y, None), (6, 0.25), (8, True), num_warps=4)
    assert kernel.compiled == [((1, 2, 3), (x, None, 5, 0.5, 8, True), {"num_warps": 4})]
    assert kernel.log == [(0, (4, 5, 6), (y.data_ptr(), None, 6, 0.25, 8, True))]


@pytest.mark.parametrize(
    ("pointers", "fixed", "options"),
    [
        (lambda x: (x.bfloat16(), x), (8,), {"num_warps": 4}),
        (lambda x: (x, None), (8,), {"num_warps": 4}),
        (lambda x: (x, x), (1,), {"num_warps": 4}),
        (lambda x: (x, x), (8,), {"num_warps": 8}),
    ],
    ids=["dtype", "no pointer", "size", "warps"],
)
def test_other_kinds_of_arguments_are_compiled_anew(kernel, pointers, fixed, options):
    launch, x = Launcher(kernel), aligned(8)
    launch((1, 1, 1), (x, x), (5,), (8,), num_warps=4)
    launch((1, 1, 1), pointers(x), (5,), fixed, **options)
    launch((1, 1, 1), pointers(x), (5,), fixed, **options)
    assert len(kernel.compiled) == 2
    assert [number for number, _, _ in kernel.log] == [1]


def test_pointers_without_alignment_are_left_to_triton(kernel):
    launch, x = Launcher(kernel), aligned(8)
    for tensor in (x[1:], x, x[1:], x):
        launch((1, 1, 1), (tensor,), (), (7,))
    assert [arguments[0].data_ptr() % 16 for _, arguments, _ in kernel.compiled] == [4, 0, 4]
    assert len(kernel.log) == 1


def test_another_version_of_triton_starts_each_kernel_itself(kernel, monkeypatch):
    monkeypatch.setattr(launch, "READ", False)
    start, x = Launcher(kernel), aligned(8)
    for _ in range(2):
        start((1, 1, 1), (x,), (), (7,))
    assert len(kernel.compiled) == 2
    assert not kernel.log


@pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter compiles nothing")
def test_on_a_gpu_an_unaligned_weight_gets_its_own_kernel():
    stored, c = torch.randn(65 * 64, device=DEVICE), torch.randn(1, 64, device=DEVICE)
    for weight in (stored[: 64 * 64].view(64, 64), stored[1 : 64 * 64 + 1].view(64, 64)) * 2:
        D = torch.stack([c[0].roll(j) for j in range(64)], dim=1)
        torch.testing.assert_close(form.form("circulant", [[c]], 64, 64, 1.0, weight), weight + D)
    assert form._form.known
