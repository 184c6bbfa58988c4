"""Replicas as `nn.DataParallel` makes them, whose parameters are plain attributes, give the same numbers."""

import pytest
import torch
from torch import nn

from surm.structures import STRUCTURES
from tests.tuners.helpers import ADAPTERS, ALL, TWO, X, adapt, net
from tests.tuners.toys import TOYS


def replica(network):
    """What torch.nn.parallel.replicate makes, which takes GPUs alone: modules are copied, parameters are functions."""
    copies = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            setattr(copied, name, copies.get(child))
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                setattr(copied, name, parameter * 1)
    assert not list(copies[network].parameters())
    return copies[network]


def run(model, call, x):
    parameters = [p for p in model.parameters() if p.requires_grad]
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), parameters)]


def assert_replicas_agree(model, module, x):
    for one, other in zip(run(model, module, x), run(model, replica(module), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.sample(8)
@pytest.mark.parametrize("backend", ["auto", "fused", "dense", "fft"])
@pytest.mark.parametrize("structure", ALL[:-1])
def test_the_weight_form(structure, backend):
    model = adapt(net(), structure=structure, backend=backend, target_modules=TWO, init_weights=False)
    assert_replicas_agree(model, model.base_model.model, X)


@pytest.mark.sample(8)
@pytest.mark.parametrize("structure", ADAPTERS)
def test_the_adapter_form(structure):
    model = adapt(net(), structure=structure, form="adapter", target_modules=TWO, init_weights=False)
    assert_replicas_agree(model, model.base_model.model, X)


@pytest.mark.sample(8)
@pytest.mark.parametrize("toy", TOYS)
def test_structures_that_are_more_than_their_parameters(toy, monkeypatch):
    monkeypatch.setitem(STRUCTURES, toy.name, toy)
    model = adapt(net(), structure=toy.name, target_modules=TWO, init_weights=False)
    assert_replicas_agree(model, model.base_model.model, X)


@pytest.mark.sample(8)
@pytest.mark.parametrize("structure", ["circulant", "ldr"])
def test_embeddings_and_convolutions(structure):
    layers = {"table": nn.Embedding(6, 8), "mix": nn.Conv1d(5, 3, 3)}
    model = adapt(
        nn.Sequential(*layers.values()).double(), structure=structure, target_modules=["0", "1"], init_weights=False
    )
    assert_replicas_agree(model, model.base_model.model, torch.arange(10).reshape(2, 5) % 6)
