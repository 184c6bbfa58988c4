"""Inputs and gradients however they lie in memory: the numbers of a dense product in float64."""

import pytest
import torch
from torch import nn

from surm.structures import STRUCTURES, structure_class
from tests.tuners.helpers import adapt

N = 12
LAYOUTS = {
    "transposed": lambda: torch.randn(N, 5).T,
    "transposed, many rows": lambda: torch.randn(N, 700).T,
    "expanded rows": lambda: torch.randn(1, N).expand(5, N),
    "expanded columns": lambda: torch.randn(5, 1).expand(5, N),
    "expanded from one number": lambda: torch.randn(()).expand(5, N),
    "strided rows": lambda: torch.randn(10, N)[::2],
    "strided columns": lambda: torch.randn(5, 3 * N)[:, ::3],
    "a part of columns": lambda: torch.randn(5, 2 * N)[:, 3 : 3 + N],
    "from channels": lambda: torch.randn(2, N, 3, 3).flatten(2).transpose(1, 2),
    "batch second": lambda: torch.randn(4, 3, N).transpose(0, 1),
    "all turned": lambda: torch.randn(N, 3, 4).permute(2, 1, 0),
    "expanded batch": lambda: torch.randn(1, 4, N).expand(3, 4, N),
    "one row": lambda: torch.randn(1, N),
    "one column's row": lambda: torch.randn(N, 1).T,
    "no batch": lambda: torch.randn(N),
    "no batch, strided": lambda: torch.randn(2 * N)[::2],
    "no rows": lambda: torch.randn(0, N),
    "no rows of many": lambda: torch.randn(3, 0, N),
    "no rows, transposed": lambda: torch.randn(N, 0).T,
    "four dimensions": lambda: torch.randn(2, N, 2, 3).movedim(1, -1),
}
GRADIENTS = {
    "expanded": lambda y: y.sum(),
    "contiguous": lambda y: y.square().sum(),
    "of some columns": lambda y: y[..., ::2].square().sum(),
    "transposed": lambda y: (y.movedim(-1, 0) * torch.arange(1.0, y.numel() + 1).view(y.movedim(-1, 0).shape)).sum(),
}
SUMS = ["circulant+kronecker", "kronecker+low_rank"]
COMPILED = ["kronecker", *(pytest.param(name, marks=pytest.mark.slow) for name in ("circulant", "ldr", *SUMS))]


def layer_of(structure, form, backend, outputs):
    torch.manual_seed(3)
    base = nn.Sequential(nn.Linear(N, outputs))
    options = {"form": form, "adapter_activation": "identity"} if form == "adapter" else {}
    model = adapt(base, structure=structure, target_modules=["0"], init_weights=False, backend=backend, **options)
    return model.double().base_model.model


def expected(layer, form, x):
    base = layer[0].get_base_layer()
    if form == "weight":
        return x @ (base.weight + layer[0].alpha["default"] * layer[0].surm_update["default"].dense()).mT + base.bias
    y = x @ base.weight.mT + base.bias
    body = layer[0].surm_adapter["default"]
    return y + body.outer(y @ body.inner.dense().mT)


def assert_equals_the_dense_layer(call, layer, form, layout, loss):
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    x = LAYOUTS[layout]().double().detach()
    leaf, twin = x.requires_grad_(), x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    y, dense = call(leaf), expected(layer, form, twin)
    assert y.shape == dense.shape
    torch.testing.assert_close(y, dense, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(GRADIENTS[loss](y), [leaf, *parameters]),
        torch.autograd.grad(GRADIENTS[loss](dense), [twin, *parameters]),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.sample(6)
@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("structure", [*STRUCTURES, *SUMS])
@pytest.mark.parametrize("backend", ["auto", "fused", "dense", "fft"])
def test_every_layout(structure, backend, form):
    if form == "adapter" and backend == "fused":
        pytest.skip("an adapter has no weight to be added to")
    if form == "adapter" and structure_class(structure).needs_weight:
        pytest.skip("an adapter has no weight to be made from")
    for outputs in (N, 8):
        layer = layer_of(structure, form, backend, outputs)
        for layout in LAYOUTS:
            for loss in GRADIENTS:
                assert_equals_the_dense_layer(layer, layer, form, layout, loss)


@pytest.mark.sample(6)
@pytest.mark.parametrize("structure", COMPILED)
@pytest.mark.parametrize("layout", ["transposed", "expanded rows", "batch second", "no rows", "no batch"])
def test_every_layout_compiled(structure, layout):
    layer = layer_of(structure, "weight", "fused", N)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_equals_the_dense_layer(compiled, layer, "weight", layout, "expanded")
