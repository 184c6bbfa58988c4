"""Numbers that are changed between a forward and its backward pass: autograd's error, never a wrong gradient."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from surm.structures import STRUCTURES
from tests.tuners.helpers import ADAPTERS, ALL, TWO, X, adapt, net
from tests.tuners.toys import TOYS

MODIFIED = "modified by an inplace operation"
BACKENDS = ["auto", "fused", "dense", "fft"]


def adapted(structure, backend="auto", **settings):
    return adapt(net(), structure=structure, backend=backend, target_modules=TWO, init_weights=False, **settings)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_never_wrong(loss, parameters, right):
    """Autograd's error, or, where the numbers of the forward pass were kept, its gradient."""
    try:
        found = torch.autograd.grad(loss, parameters)
    except RuntimeError as error:
        if MODIFIED not in str(error):
            raise
    else:
        torch.testing.assert_close(found, right)


def step(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1)


@pytest.mark.sample(8)
@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ALL[:-1])
def test_two_losses_with_a_step_between_them(structure, backend, form):
    if (form, backend) == ("adapter", "fused"):
        pytest.skip("an adapter has no weight to be added to")
    if form == "adapter" and structure not in ADAPTERS:
        pytest.skip("an adapter has no weight to be made from")
    model = adapted(structure, backend, form=form)
    parameters = trained(model)
    first, second = model(X).sum(), model(2 * X).square().sum()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    right = torch.autograd.grad(second, parameters, retain_graph=True)
    first.backward()
    optimizer.step()
    if backend == "fft":
        with pytest.raises(RuntimeError, match=MODIFIED):
            second.backward()
    else:
        assert_never_wrong(second, parameters, right)


@pytest.mark.sample(8)
@pytest.mark.parametrize("toy", TOYS)
def test_structures_that_are_more_than_their_parameters(toy, monkeypatch):
    monkeypatch.setitem(STRUCTURES, toy.name, toy)
    model = adapted(toy.name, "fft")
    loss = model(X).sum()
    step(trained(model))
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


@pytest.mark.sample(8)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_changed_input(structure, backend):
    layer = adapted(structure, backend).base_model.model.first
    x = X.clone()
    loss = layer(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward()


@pytest.mark.sample(8)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_parameter_of_several_is_enough(structure, backend):
    model = adapted(structure, backend)
    structures = [module for module in model.modules() if type(module) is STRUCTURES[structure]]
    for index in range(len(list(structures[0].parameters()))):
        loss = model(X).square().sum()
        right = torch.autograd.grad(loss, trained(model), retain_graph=True)
        step([list(structures[0].parameters())[index]])
        assert_never_wrong(loss, trained(model), right)


@pytest.mark.sample(8)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ALL[:-1])
def test_without_a_change_gradients_are_those_of_the_dense_layer(structure, backend):
    """Two losses and then one step, a second backward pass of one loss, a step after both."""
    layer = adapted(structure, backend).base_model.model.first
    parameters = trained(layer)
    weight, bias = layer.get_base_layer().weight, layer.get_base_layer().bias

    def expected(x):
        return x @ (weight + layer.surm_update["default"].dense()).mT + bias

    for _ in range(2):
        losses = layer(X).square().sum(), layer(2 * X).square().sum()
        twins = expected(X).square().sum(), expected(2 * X).square().sum()
        for loss, twin in zip(losses, twins, strict=True):
            for _ in range(2):
                torch.testing.assert_close(
                    torch.autograd.grad(loss, parameters, retain_graph=True),
                    torch.autograd.grad(twin, parameters, retain_graph=True),
                )
        step(parameters)


@pytest.mark.sample(8)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ["circulant", "kronecker", "circulant+ldr"])
def test_parameters_of_a_functional_call(structure, backend):
    """They are gone when the backward pass computes again."""
    model = adapted(structure, backend)
    other = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(functional_call(model, other, (X,)).square().sum(), list(other.values()))
    step_to = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in other.items():
            step_to[name].copy_(value)
    expected = torch.autograd.grad(model(X).square().sum(), trained(model))
    torch.testing.assert_close(found, expected)


def test_frozen_layers_and_inference_tensors_pass():
    model = adapted("circulant", "fft")
    with torch.inference_mode():
        x = X.clone()
        model(x)
    for parameter in trained(model):
        parameter.requires_grad_(False)
    leaf = X.clone().requires_grad_()
    loss = model(leaf).sum()
    loss.backward()
    assert leaf.grad is not None
    assert model(x).shape == (5, 3)


def test_a_model_of_several_calls_of_one_layer():
    layer = adapted("circulant", "fft").base_model.model.first
    recurrent = nn.Sequential(layer, nn.Tanh(), layer)
    dense = layer.get_base_layer().weight + layer.surm_update["default"].dense()

    def expected(x):
        return torch.tanh(x @ dense.mT + layer.get_base_layer().bias) @ dense.mT + layer.get_base_layer().bias

    torch.testing.assert_close(
        torch.autograd.grad(recurrent(X).sum(), trained(layer)),
        torch.autograd.grad(expected(X).sum(), trained(layer)),
    )
