"""The ways of a GPU give the numbers of dense matrices in float64."""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from surm.structures import build, gpu
from surm.structures.backends import updates
from surm.structures.gpu import factors, transform_kernels
from surm.structures.gpu.ways import WAYS, ways_of
from surm.structures.ops import updated_linear
from surm.structures.plan import Update
from tests.structures.gpu import DEVICE
from tests.structures.twin import assert_dense

CASES = [
    ("form", "circulant", {"terms": 2}),
    ("form", "skew_circulant", {}),
    ("form", "toeplitz", {"factors": 1, "symmetric": False}),
    ("form", "toeplitz", {"factors": 1}),
    ("form", "ldr", {}),
    ("correlate", "toeplitz", {"factors": 1}),
    ("correlate", "ldr", {}),
    ("transform", "circulant", {}),
    ("transform", "toeplitz", {"symmetric": False}),
    ("transform", "ldr", {"terms": 2}),
    ("factors", "kronecker", {"factor_shape": [8, 8]}),
    ("factors", "kronecker", {"terms": 2}),  # which its kernel refuses
]
SIDES = {"factors": 64}  # of the matrices: smaller factors have more padding than numbers, and are refused


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def by_way(way: str, listed: list[Update]) -> list[Update]:
    return [update._replace(way=way, outer=True) for update in listed]


def two_parts(structure, options, m, n):
    torch.manual_seed(0)
    parts = [build(structure, m, n, device=DEVICE, **options) for _ in range(2)]
    for part in parts:
        part.reset_parameters(False)
    return parts


def check(way, parts, x, g, weight=None, base=None, together=False):
    m, alpha = parts[0].m, -0.5
    listed = [
        update
        for index, part in enumerate(parts)
        for update in updates(part, x, slice(m * index, m * index + m), alpha)
    ]
    y = updated_linear(x, weight, None, 2 * m, by_way(way, listed), together=together, base=base)
    assert_dense(y, parts, alpha, x, g, weight=weight, base=base, within=1e-4)


@pytest.mark.sample(6)
@pytest.mark.parametrize("beside", ["weight", "sum", "output", "nothing"])
@pytest.mark.parametrize(("way", "structure", "options"), CASES)
def test_two_parts_of_one_layer_have_the_numbers_of_dense_matrices(way, structure, options, beside):
    m = n = SIDES.get(way, 32)
    weight = draw(2 * m, n, seed=2) if beside in ("weight", "sum") else None
    base = draw(20, 2 * m) if beside == "output" else None
    x, g = draw(20, n).requires_grad_(), draw(20, 2 * m, seed=1)
    check(way, two_parts(structure, options, m, n), x, g, weight, base, together=beside == "sum")


@pytest.mark.sample(2)
@pytest.mark.parametrize(("way", "structure", "options"), CASES)
def test_rows_may_stand_in_columns_of_memory_or_be_one_row_expanded(way, structure, options):
    m = n = SIDES.get(way, 32)
    x = draw(n, 20).T.requires_grad_()
    check(way, two_parts(structure, options, m, n), x, draw(1, 1).expand(20, 2 * m), draw(2 * m, n, seed=2))


@pytest.mark.parametrize(("place", "way"), [(DEVICE, "form"), ("meta", "plain")])
def test_parameters_elsewhere_are_for_operators_that_say_so(place, way):
    part = build("circulant", 32, 32, device=DEVICE)
    [update] = updates(part, torch.empty(5, 32, device=place), ways=[("form", True)])
    assert update.way == way


@pytest.mark.parametrize(
    ("kernel", "size", "dtype", "rows", "way"),
    [
        ("circulant", 768, torch.bfloat16, 16384, "form"),
        ("circulant", 1024, torch.bfloat16, 2048, "form"),
        ("circulant", 1024, torch.float16, 16384, "transform"),
        ("toeplitz", 1024, torch.float16, 16384, "form"),
        ("circulant", 4096, torch.bfloat16, 2048, "transform"),
        ("circulant", 8192, torch.bfloat16, 2048, "form"),  # longer than a transform can be
        ("circulant", 384, torch.float32, 2048, "form"),
        ("toeplitz", 768, torch.float32, 2048, "correlate"),
        ("circulant", 4096, torch.float32, 2048, "correlate"),
        ("ldr", 768, torch.bfloat16, 2048, "form"),
        ("ldr", 768, torch.float32, 2048, "transform"),
        ("ldr", 768, torch.float32, 16384, "correlate"),
        ("symmetric_toeplitz_pair", 4096, torch.bfloat16, 2048, "transform"),
        ("kronecker", 768, torch.float32, 2048, "factors"),
        ("circulant", 768, torch.float64, 2048, "plain"),
        ("low_rank", 768, torch.float32, 2048, "plain"),
    ],
)
def test_way_by_kernel_size_dtype_and_rows(kernel, size, dtype, rows, way):
    few, many, least = ways_of(kernel, size, size, dtype)
    assert (many if rows >= least else few) == way


@pytest.mark.parametrize(
    ("way", "structure", "options", "kernels", "refused"),
    [
        ("transform", "circulant", {}, transform_kernels, "spectra"),
        ("correlate", "circulant", {}, transform_kernels, "backward"),
        pytest.param("transform", "ldr", {}, transform_kernels, "backward", marks=pytest.mark.slow),
        ("factors", "kronecker", {"factor_shape": [8, 8]}, factors, "_gradients"),
    ],
    ids=["spectrum", "gradients", "transforms", "factors"],
)
def test_what_a_gpu_has_no_room_for_goes_another_way(way, structure, options, kernels, refused, monkeypatch):
    """And is asked for once."""
    refusal = Mock(side_effect=OutOfResources(180_224, 166_912, "shared memory"))
    monkeypatch.setattr(kernels, refused, refusal)
    monkeypatch.setattr(WAYS[way], "refused", set())
    m = n = SIDES.get(way, 32)
    x, g = draw(20, n).requires_grad_(), draw(20, 2 * m, seed=1)
    for _ in range(2):
        check(way, two_parts(structure, options, m, n), x, g, draw(2 * m, n, seed=2))
    assert refusal.call_count == 1


@pytest.mark.parametrize(("capability", "runs"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_kernels_are_for_gpus_that_triton_knows(capability, runs, monkeypatch):
    """A T4 goes the plain way, and so does what is beside one."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), capability)[index])
    gpu._new_enough.cache_clear()
    assert gpu.available(torch.device("cuda")) == runs
    gpu._new_enough.cache_clear()
