"""Adapters by row of a batch, and modules whose output is more than one tensor."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from surm import SurmConfig
from surm.tuners import SurmAdapter
from tests.tuners.helpers import IDS, IMAGES, TWO, X, adapter, body_in_numpy, logits, net, tiny_bert, tiny_vit

STRUCTURES = {"default": "circulant", "other": "bottleneck", "third": "kronecker"}
ROWS = ["other", "__base__", "default", "third", "other"]


def three(model, **settings):
    """A model with three adapters, each of another structure, in evaluation mode."""
    model = adapter(model, init_weights=False, **settings)
    for name in ("other", "third"):
        config = SurmConfig(form="adapter", structure=STRUCTURES[name], init_weights=False, **settings)
        model.add_adapter(name, config)
    return model.eval()


# --- mixed batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_each_row_takes_its_own_adapter(shape):
    layer = three(net(), target_modules=["first"]).base_model.model.first
    x = torch.linspace(-2, 2, 5 * int(np.prod(shape)), dtype=torch.float64).reshape(5, *shape)
    plain = layer.base_layer(x).detach().numpy()
    expected = np.stack(
        [
            row if name == "__base__" else row + body_in_numpy(layer, row, STRUCTURES[name], "gelu", name)
            for name, row in zip(ROWS, plain, strict=True)
        ]
    )
    output = layer(x, adapter_names=ROWS)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=0, atol=1e-13)
    # The same rows whichever adapter is active, and those of the base model where all are disabled.
    layer.set_adapter("third")
    assert torch.equal(layer(x, adapter_names=ROWS), output)
    layer.enable_adapters(False)
    assert torch.equal(layer(x, adapter_names=ROWS), layer.base_layer(x))


@pytest.mark.parametrize("base", [tiny_bert, tiny_vit, net])
def test_a_model_gives_each_row_what_the_model_with_that_adapter_gives(base):
    x = (IDS if base is tiny_bert else IMAGES if base is tiny_vit else X)[:2].repeat_interleave(2, 0)
    model = three(base(), **({"target_modules": TWO} if base is net else {}))
    names = ["third", "__base__", "default", "other"]
    with model.disable_adapter():
        alone = {"__base__": logits(model, x)}
    for name in STRUCTURES:
        model.set_adapter(name)
        alone[name] = logits(model, x)
    expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
    assert (expected[2] - alone["third"][2]).abs().max() > 1e-4
    output = model(x, adapter_names=names)
    torch.testing.assert_close(getattr(output, "logits", output), expected, rtol=0, atol=1e-5)


def test_an_adapter_of_another_module_leaves_the_row_as_it_is():
    model = three(net(), target_modules=["first"])
    model.add_adapter("second", SurmConfig(form="adapter", target_modules=["second"], init_weights=False))
    layers = model.base_model.model
    names = ["second"] * 4 + ["default"]
    output = layers.first(X, adapter_names=names)
    assert torch.equal(output[:4], layers.first.base_layer(X)[:4])
    assert not torch.equal(output[4], layers.first.base_layer(X)[4])


def test_a_module_that_hands_on_its_input_leaves_the_caller_s_tensor_alone():
    model = three(nn.Sequential(nn.Identity(), nn.Linear(12, 2)).double(), target_modules=["0"], adapter_width=12)
    x = X.clone()
    output = model.base_model.model[0](x, adapter_names=ROWS)
    assert torch.equal(x, X)
    assert torch.equal(output[1], X[1])
    assert (output[0] - X[0]).abs().max() > 1e-3


def test_rows_of_a_bfloat16_model_stay_bfloat16():
    layer = three(net().bfloat16(), target_modules=["first"]).base_model.model.first
    x = X.bfloat16()
    output = layer(x, adapter_names=ROWS)
    assert output.dtype == torch.bfloat16
    row = layer.base_layer(x)[2].double().detach().numpy()
    expected = row + body_in_numpy(layer, row, "circulant", "gelu")
    np.testing.assert_allclose(output[2].detach().double().numpy(), expected, rtol=1e-2, atol=1e-2)


def test_impossible_mixed_batches_are_refused_as_by_lora():
    model = three(net(), target_modules=TWO)
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
        model(X, adapter_names=ROWS[:4])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): typo"):
        model(X, adapter_names=["typo", *ROWS[1:]])
    model.train()
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        model(X, adapter_names=ROWS)


# --- outputs ----------------------------------------------------------------------------------------------------------

Named = namedtuple("Named", "hidden rest")
REST = torch.arange(3.0)
OUTPUTS = {
    "tuple": lambda x: (x, REST),
    "tuple of one": lambda x: (x,),
    "list": lambda x: [x, REST],
    "named tuple": lambda x: Named(x, REST),
    "dictionary": lambda x: {"hidden": x, "rest": REST},
    "ordered dictionary": lambda x: OrderedDict(hidden=x, rest=REST),
    "ModelOutput": lambda x: BaseModelOutput(last_hidden_state=x, attentions=(REST,)),
    "ModelOutput of one": lambda x: BaseModelOutput(last_hidden_state=x),
    "ModelOutput without a field": lambda x: BaseModelOutputWithPooling(last_hidden_state=x, hidden_states=(REST,)),
}


class Several(nn.Linear):
    """A layer with more results than one."""

    def __init__(self, output):
        super().__init__(12, 12)
        self.output = output

    def forward(self, x, scale=1.0):
        return self.output(scale * super().forward(x))


class Around(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.layer = Several(output)

    def forward(self, x):
        return self.layer(x, scale=2.0)


def elements(output):
    return list(output.values()) if hasattr(output, "values") else list(output)


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("adapter_names", [None, ROWS])
def test_the_first_tensor_is_adapted_and_the_output_keeps_its_type_and_its_other_elements(kind, adapter_names):
    torch.manual_seed(0)
    model = three(Around(OUTPUTS[kind]).double(), target_modules=["layer"])
    layer = model.base_model.model.layer
    x = layer.base_layer(X, scale=2.0)
    output = layer(X, scale=2.0, adapter_names=adapter_names)
    assert type(output) is type(x)
    first = elements(x)[0].detach().numpy()
    for row, name in enumerate(adapter_names or ["default"] * 5):
        added = 0.0 if name == "__base__" else body_in_numpy(layer, first, STRUCTURES[name], "gelu", name)[row]
        np.testing.assert_allclose(elements(output)[0][row].detach().numpy(), first[row] + added, rtol=0, atol=1e-13)
    assert len(elements(output)) == len(elements(x))
    assert all(a is b or a[0] is b[0] for a, b in zip(elements(output)[1:], elements(x)[1:], strict=True))
    if isinstance(output, BaseModelOutput):
        assert output.last_hidden_state is output["last_hidden_state"] is output[0]
        assert output.hidden_states is x.hidden_states
    with model.disable_adapter():
        assert torch.equal(elements(model(X))[0], elements(x)[0])


@pytest.mark.parametrize("kind", ["tuple", "named tuple", "dictionary", "ModelOutput"])
def test_such_a_layer_compiles_without_a_graph_break(kind):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = three(Around(OUTPUTS[kind]).double(), target_modules=["layer"]).base_model.model
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(elements(compiled(X))[0], elements(model(X))[0])


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_an_output_of_another_width_is_refused_in_one_sentence(structure):
    model = adapter(nn.Sequential(nn.Dropout()), structure=structure, target_modules=["0"], adapter_width=16)
    assert isinstance(model.base_model.model[0], SurmAdapter)
    with pytest.raises(
        ValueError, match=r"Dropout has an output of shape \(5, 12\) and.*give adapter_width=12"
    ) as error:
        model(X)
    assert "\n" not in str(error.value)
