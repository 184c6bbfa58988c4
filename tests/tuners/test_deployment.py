"""Traced models and forward-mode derivatives: plain operations in place of the operator."""

import pytest
import torch
from torch.autograd import forward_ad

from surm.structures import STRUCTURES
from tests.tuners.helpers import ADAPTERS, TWO, X, adapt, net

NAMES = [*STRUCTURES, "circulant+ldr"]
CASES = [(structure, "weight", backend) for structure in NAMES for backend in ("auto", "fused", "dense", "fft")]
CASES += [(structure, "adapter", "dense") for structure in NAMES if structure in [*ADAPTERS, "circulant+ldr"]]


def adapted(structure, form, backend):
    config = {"form": form, "backend": backend, "target_modules": TWO, "init_weights": False}
    return adapt(net(), structure=structure, **config)


@pytest.mark.sample(6)
@pytest.mark.parametrize(("structure", "form", "backend"), CASES)
def test_a_traced_model_takes_other_inputs(structure, form, backend):
    model = adapted(structure, form, backend).eval().base_model.model
    with torch.no_grad():
        traced = torch.jit.trace(model, X)
        for x in (2 * X, X[:1], X.repeat(9, 1)):
            torch.testing.assert_close(traced(x), model(x))


@pytest.mark.sample(6)
@pytest.mark.parametrize(("structure", "form", "backend"), CASES)
def test_forward_mode_derivatives_are_those_of_the_backward_pass(structure, form, backend):
    model = adapted(structure, form, backend).base_model.model
    v = X.cos()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(dim=0), X)
    expected = torch.einsum("onk,nk->o", jacobian, v)
    torch.testing.assert_close(torch.func.jvp(model, (X,), (v,))[1].sum(dim=0), expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(X, v))).tangent
    torch.testing.assert_close(tangent.sum(dim=0), expected)
