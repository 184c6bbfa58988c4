"""Traced models and forward-mode derivatives: plain operations in place of the operator."""

import pytest
import torch
from torch.autograd import forward_ad

from surm.structures import STRUCTURES
from tests.tuners.helpers import TWO, X, adapt, net


@pytest.fixture(
    params=[("weight", "auto"), ("weight", "fused"), ("weight", "dense"), ("weight", "fft"), ("adapter", "dense")]
)
def settings(request):
    form, backend = request.param
    return {"form": form, "backend": backend, "target_modules": TWO, "init_weights": False}


@pytest.mark.sample(6)
@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+ldr"])
def test_a_traced_model_takes_other_inputs(structure, settings):
    model = adapt(net(), structure=structure, **settings).eval().base_model.model
    with torch.no_grad():
        traced = torch.jit.trace(model, X)
        for x in (2 * X, X[:1], X.repeat(9, 1)):
            torch.testing.assert_close(traced(x), model(x))


@pytest.mark.sample(6)
@pytest.mark.parametrize("structure", [*STRUCTURES, "circulant+ldr"])
def test_forward_mode_derivatives_are_those_of_the_backward_pass(structure, settings):
    model = adapt(net(), structure=structure, **settings).base_model.model
    v = X.cos()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(dim=0), X)
    expected = torch.einsum("onk,nk->o", jacobian, v)
    torch.testing.assert_close(torch.func.jvp(model, (X,), (v,))[1].sum(dim=0), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(X, v))).tangent
    torch.testing.assert_close(tangent.sum(dim=0), expected)
