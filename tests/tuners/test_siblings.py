"""Query, key and value that read one tensor are computed in one go, exactly, and apart where that is not sure."""

import copy
import pickle
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from surm import SurmConfig
from surm.tuners import SurmLinear, siblings
from tests.structures.twin import assert_dense
from tests.tools.skips import needs_peft_021
from tests.tuners.helpers import IDS, adapt, tiny_bert
from tests.tuners.test_replicas import replica

ROWS = {"query": 24, "key": 12, "value": 12}  # as where queries share keys
NAMES = list(ROWS)
counted = patch.object(siblings, "updated_linears", wraps=siblings.updated_linears)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        for name, m in ROWS.items():
            setattr(self, name, nn.Linear(24, m, bias=name != "key"))

    def forward(self, x, other=None):
        return torch.cat([self.query(x), self.key(x if other is None else other), self.value(x)], dim=-1)


def attention(dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"structure": "circulant", "alpha": -0.5, "target_modules": NAMES, "backend": "fused"} | options
    return adapt(Attention().to(dtype), init_weights=False, **options)


def layers(model):
    return [module for module in model.modules() if isinstance(module, SurmLinear)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "ldr", "circulant+skew_circulant"])
def test_outputs_and_gradients_are_those_of_the_dense_matrices(structure):
    model, x = attention(structure=structure), draw(3, 5, 24).requires_grad_()
    parts = [layer.surm_update["default"] for layer in layers(model)]
    weight = torch.cat([layer.base_layer.weight for layer in layers(model)]).detach()
    bias = torch.cat(
        [torch.zeros(12) if layer.base_layer.bias is None else layer.base_layer.bias for layer in layers(model)]
    )
    with counted as calls:
        y = model(x)
    assert calls.call_count == 1
    base = bias.detach().expand_as(y)
    assert_dense(y, parts, -0.5, x, draw(3, 5, 48, seed=1), weight=weight, base=base, within=1e-12)
    assert model.base_model.model.query.siblings.ready is None


SYSTEMS = {
    "block_low_rank": {"blocks": 4},
    "lora_mini": {"rank": 2},
    "lora_xs": {"rank": 3},
    "gated_low_rank": {"rank": 3},
    "gated_chain": {"rank": 3, "outer_rank": 2},
    "diagonal": {},
    "aurora": {"rank": 3},
    "lorta": {"rank": 3},
    "circulant+lora_xs": {"rank": 3},
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("structure", SYSTEMS)
@pytest.mark.parametrize("call", ["model", "query twice", "changed between"])
def test_each_system_gives_what_its_layers_give_alone(structure, call):
    """In float64; what is not a matrix's own, such as shared tensors, gets the gradients of all that read it."""
    options = {"structure_options": SYSTEMS[structure], "init_weights": False, "alpha": -0.5, "backend": "fused"}
    model = adapt(tiny_bert().double(), structure=structure, **options)
    model(IDS)  # the first one is watched by hooks
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(draw(*parameter.shape) / 2)

    def outputs(model):
        own, x = model.base_model.model.bert.encoder.layer[1].attention.self, draw(2, 6, 24)
        if call == "model":
            return model(IDS, output_hidden_states=True).hidden_states[-1]
        if call == "query twice":
            return own.query(x) + 2 * own.key(x) + 3 * own.value(x) + 4 * own.query(x)
        y = own.query(x).detach()
        x.mul_(2)
        return y + own.key(x) + 3 * own.value(x)

    found = []
    for one in (copy.deepcopy(model), apart(model)):
        with counted as calls:
            y = outputs(one)
        found.append((y, calls.call_count, [p for p in one.parameters() if p.requires_grad]))
    (y, grouped, own), (expected, alone, others) = found
    assert grouped > 0
    assert alone == 0
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = draw(*y.shape, seed=2)
    gradients = [
        torch.autograd.grad((y * weights).sum(), p, allow_unused=True, materialize_grads=True)
        for y, p in ((y, own), (expected, others))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[1])


@needs_peft_021
def test_an_output_that_nothing_depends_on_and_trained_biases():
    model, x = attention(bias="all"), draw(5, 24).requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    with counted as calls:
        found = torch.autograd.grad(
            model(x)[:, :24].square().sum(), [x, *trained], allow_unused=True, materialize_grads=True
        )
    assert calls.call_count == 1
    expected = torch.autograd.grad(apart(model)(x)[:, :24].square().sum(), [x, *trained], materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def apart(model):
    """The same model, each layer on its own from now on."""
    for layer in layers(model):
        layer.siblings = None
    return model


SITUATIONS = {  # options of the adapter, what is done to the model, and what surrounds the call
    "hook of a layer": ({}, lambda model: layers(model)[1].register_forward_hook(lambda *_: None), nullcontext),
    "hook of a base layer": (
        {},
        lambda model: layers(model)[2].base_layer.register_forward_hook(lambda *_: None),
        nullcontext,
    ),
    "saved tensors elsewhere": ({}, lambda model: None, torch.autograd.graph.save_on_cpu),
    "no gradients": ({}, lambda model: None, torch.no_grad),
    "autocast": ({}, lambda model: None, lambda: torch.autocast("cpu", torch.bfloat16)),
    "dropout": ({"dropout": 0.5}, lambda model: model.train(), nullcontext),
    "transforms": ({"backend": "fft"}, lambda model: None, nullcontext),
    "half precision": ({"dtype": torch.bfloat16}, lambda model: None, nullcontext),
    "one merged": ({}, lambda model: layers(model)[1].merge(), nullcontext),
    "other adapters": (
        {},
        lambda model: (
            model.add_adapter("more", further(["key"])),
            model.base_model.set_adapter(["default", "more"]),
        ),
        nullcontext,
    ),
    "no adapters": ({}, lambda model: model.base_model.disable_adapter_layers(), nullcontext),
    "a replica": ({}, lambda model: replica(model), nullcontext),
}


def further(targets):
    return SurmConfig(structure="kronecker", target_modules=targets, init_weights=False)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_they_go_apart_where_somebody_else_looks(situation):
    options, prepare, around = SITUATIONS[situation]
    model = attention(**options)
    result = prepare(model)
    called = result if isinstance(result, nn.Module) and result is not model else model
    x = draw(5, 24).to(options.get("dtype", torch.float32 if situation == "autocast" else torch.float64))
    called = called.float() if situation == "autocast" else called
    with counted as calls, around():
        torch.manual_seed(1)
        found = called(x)
        assert calls.call_count == 0
        torch.manual_seed(1)
        assert torch.equal(found, apart(called)(x))


def test_other_inputs_are_seen_once_and_never_tried_again():
    model, x, other = attention(), draw(5, 24), draw(5, 24, seed=1)
    with counted as calls:
        found = [model(x, other), model(x, other), model(x)]
    assert calls.call_count == 1
    apart(model)
    for y, expected in zip(found, [model(x, other), model(x, other), model(x)], strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_an_input_that_changed_in_between_is_read_again():
    model, x = attention(), draw(5, 24)
    inner = model.base_model.model
    with torch.no_grad():
        expected = torch.cat([inner.query(x), inner.key(2 * x), inner.value(2 * x)], dim=-1)
    q = inner.query(x)
    x.mul_(2)
    found = torch.cat([q, inner.key(x), inner.value(x)], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def write(parameter):
    with torch.no_grad():
        parameter.add_(1)


CHANGES = {  # between the calls of query and key
    "parameters": lambda model, key: write(key.surm_update["default"].r2),
    "new storage": lambda model, key: setattr(key.base_layer.weight, "data", key.base_layer.weight.data + 1),
    "weights": lambda model, key: key.base_layer.load_state_dict({"weight": torch.ones(12, 24)}),
    "another adapter": lambda model, key: model.set_adapter("more"),
    "two adapters": lambda model, key: model.base_model.set_adapter(["default", "more"]),
    "no adapter": lambda model, key: model.base_model.disable_adapter_layers(),
    "merged": lambda model, key: key.merge(),
    "scaled": lambda model, key: key.alpha.update(default=2.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_in_between_counts(change):
    model, x = attention(), draw(5, 24)
    model.add_adapter("more", further(NAMES))
    model.base_model.set_adapter(["default"])
    inner = model.base_model.model
    with counted as calls:
        inner.query(x)
    assert calls.call_count == 1
    change(model, inner.key)
    assert torch.equal(inner.key(x), apart(model).base_model.model.key(x))


def test_a_backward_pass_inside_autocast_takes_no_digits():
    model, x = attention(torch.float32), draw(5, 24).float().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    y = model(x).square().sum()
    expected = torch.autograd.grad(y, [x, *trained], retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, [x, *trained])
    assert all(map(torch.equal, found, expected))


def test_a_torch_that_does_not_tell_of_hooks_keeps_them_apart():
    with patch.object(siblings, "getattr", lambda *_: None, create=True), counted as calls:
        attention()(draw(5, 24))
    assert calls.call_count == 0


def test_a_call_that_ended_in_between_leaves_nothing_wrong():
    model, x = attention(), draw(5, 24)
    inner = model.base_model.model
    expected = apart(copy.deepcopy(model))(x)
    inner.query(x)
    twin = pickle.loads(pickle.dumps(model))  # what waits is not copied
    assert twin.base_model.model.query.siblings.ready is None
    for again in (model, twin):
        torch.testing.assert_close(again(x), expected, rtol=1e-12, atol=1e-12)
    assert inner.query.siblings.ready is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_gives_the_same_gradients(reentrant):
    model, x = attention(), draw(5, 24).requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    both = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        for tensor in (x, *trained):
            tensor.grad = None
        call(x).square().sum().backward()
        both.append([tensor.grad for tensor in (x, *trained)])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_they_are_found_in_a_model_with_two_adapters_and_in_its_copies():
    model = adapt(tiny_bert(), init_weights=False)
    model.add_adapter("more", further(["query", "key", "value"]))
    model.base_model.set_adapter(["default", "more"])
    expected = apart(copy.deepcopy(model))(IDS).logits
    for one in (model, copy.deepcopy(model)):
        one(IDS)  # the first one is watched by hooks
        with counted as calls:
            found = one(IDS).logits
        assert calls.call_count == 2  # layers of the model
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
