"""The adapter form under PEFT's own functions, alone and beside the weight form."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from surm.tuners import SurmAdapter
from tests.tools.skips import needs_peft_021
from tests.tuners.helpers import (
    IDS,
    IMAGES,
    TWO,
    X,
    adapter,
    adapter_config,
    body_in_numpy,
    logits,
    net,
    numbers,
    sites,
    timm_vit,
    tiny_bert,
    tiny_vit,
    trainable,
    trained,
)

# --- several adapters -------------------------------------------------------------------------------------------------


def test_adapters_are_parallel_and_can_be_switched_disabled_deleted_and_unloaded():
    base = net()
    model = adapter(copy.deepcopy(base), target_modules=TWO, init_weights=False)
    torch.manual_seed(3)
    model.add_adapter("other", adapter_config(structure="bottleneck", target_modules=["first"]))
    layers = model.base_model.model

    def expected(*active):
        x = base.first(X).detach().numpy()
        first = x + sum(
            body_in_numpy(layers.first, x, structure, "gelu", name)
            for name, structure in (("default", "circulant"), ("other", "bottleneck"))
            if name in active
        )
        second = base.second(torch.tanh(torch.from_numpy(first)))
        if "default" in active:
            second = second.detach().numpy()
            second = torch.from_numpy(second + body_in_numpy(layers.second, second, "circulant", "gelu"))
        return base.head(torch.tanh(second))

    def assert_active(*active):
        torch.testing.assert_close(model(X), expected(*active), rtol=0, atol=1e-13)

    assert_active("default")
    model.set_adapter("other")
    assert_active("other")
    model.base_model.set_adapter(["default", "other"])
    assert_active("default", "other")
    with model.disable_adapter():
        assert torch.equal(model(X), base(X))
    assert_active("default", "other")
    model.delete_adapter("default")
    assert_active("other")
    assert not any("default" in name for name, _ in model.named_parameters())
    model.delete_adapter("other")
    torch.testing.assert_close(layers(X), expected(), rtol=0, atol=1e-13)  # PEFT's wrapper needs an active adapter
    plain = model.unload()
    assert type(plain.first) is nn.Linear
    assert torch.equal(plain(X), base(X))


def test_which_parameters_are_trained_follows_the_active_adapters():
    model = adapter(net(), target_modules=["first"])
    model.add_adapter("other", adapter_config(target_modules=TWO))
    names = ("inner.r1", "inner.r2", "outer.bias")
    default = {f"first.surm_adapter.default.{name}" for name in names}
    other = {f"{layer}.surm_adapter.other.{name}" for layer in TWO for name in names}
    assert trained(model) == default
    model.set_adapter("other")
    assert trained(model) == other
    model.base_model.set_adapter(["default", "other"])
    assert trained(model) == default | other
    model.set_requires_grad("default", False)
    assert trained(model) == other
    model.base_model.set_adapter(["default", "other"], inference_mode=True)
    assert trained(model) == set()
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    assert trained(model) == default | other
    model.delete_adapter("other")
    assert trained(model) == default


def test_an_adapter_for_inference_is_frozen_and_leaves_the_training_of_another_alone(tmp_path):
    model = adapter(net(), target_modules=TWO, inference_mode=True)
    assert trained(model) == set()
    model.save_pretrained(tmp_path)
    assert trained(PeftModel.from_pretrained(net(), tmp_path)) == set()
    assert len(trained(PeftModel.from_pretrained(net(), tmp_path, is_trainable=True))) == 6


def test_a_task_head_is_trained_and_saved_with_each_adapter(tmp_path):
    model = adapter(tiny_bert(), init_weights=False, modules_to_save=["classifier"]).eval()
    model.add_adapter("other", adapter_config(structure="kronecker", modules_to_save=["classifier"]))
    outputs = {}
    for number, name in enumerate(("default", "other")):
        model.set_adapter(name)
        with torch.no_grad():
            model.base_model.model.classifier.modules_to_save[name].bias.fill_(1.0 + number)
        outputs[name] = logits(model, IDS)
        assert {name for name in trained(model) if "surm_" not in name} == {
            f"classifier.modules_to_save.{name}.{parameter}" for parameter in ("weight", "bias")
        }
    assert (outputs["other"] - outputs["default"]).abs().min() > 0.1
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    for name, output in outputs.items():
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded.eval(), IDS), output)


def test_adapters_go_into_a_model_without_a_wrapper_and_their_numbers_out_and_in_again():
    model, other = net(), net()
    inject_adapter_in_model(adapter_config(target_modules=TWO), model)
    assert type(model).__name__ == "Net"
    assert isinstance(model.first, SurmAdapter)
    numbers_of_one = get_peft_model_state_dict(model)
    assert numbers_of_one.keys() == {
        f"{layer}.surm_adapter.{name}" for layer in TWO for name in ("inner.r1", "inner.r2", "outer.bias")
    }
    inject_adapter_in_model(adapter_config(target_modules=TWO), other, adapter_name="renamed")
    assert not torch.equal(other(X), model(X))
    result = set_peft_model_state_dict(other, numbers_of_one, adapter_name="renamed")
    assert not result.unexpected_keys
    assert torch.equal(other(X), model(X))


# --- structures by module ---------------------------------------------------------------------------------------------


def test_a_pattern_gives_modules_structures_of_their_own_that_are_saved_and_found_again(tmp_path):
    pattern = {
        "blocks.1.ls1": {"structure": "bottleneck", "structure_options": {"size": 3}},
        r"blocks\.\d+\.ls2": "kronecker",
    }
    model = adapter(tiny_vit(), structure_pattern=pattern, init_weights=False).eval()
    blocks = model.base_model.model.blocks
    kinds = {(0, "ls1"): "circulant", (1, "ls1"): "bottleneck", (0, "ls2"): "kronecker", (1, "ls2"): "kronecker"}
    x = torch.linspace(-1, 1, 4 * 192).reshape(4, 192)
    for (index, name), structure in kinds.items():
        layer = getattr(blocks[index], name)
        expected = x.numpy() + body_in_numpy(layer, x.numpy().astype(np.float64), structure, "gelu")
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-5)
    assert numbers(blocks[1].ls1.surm_adapter["default"].inner)["weight"].shape == (3, 192)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert loaded.peft_config["default"].structure_pattern == pattern
    assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_collapsing_is_refused_where_a_pattern_gives_one_module_a_bottleneck():
    model = adapter(net(), structure_pattern={"second": "bottleneck"}, target_modules=TWO, init_weights=False)
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="bottleneck cannot be collapsed") as error:
        model.collapse()
    assert "\n" not in str(error.value)
    assert {name: p.shape for name, p in model.named_parameters()} == before


# --- unloading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [tiny_vit, tiny_bert, lambda: timm_vit(init_values=0.1)])
def test_unloading_gives_back_the_very_modules(base):
    x = IDS if base is tiny_bert else IMAGES
    plain = base()
    modules = dict(plain.named_modules())
    unloaded = adapter(plain, init_weights=False).unload().eval()
    assert torch.equal(logits(unloaded, x), logits(base(), x))
    assert {name: id(module) for name, module in unloaded.named_modules()} == {
        name: id(module) for name, module in modules.items()
    }
    again = adapter(unloaded, init_weights=False)
    assert sites(again) == sites(adapter(base()))


@needs_peft_021
@pytest.mark.parametrize("bias", ["all", "surm_only"])
def test_biases_of_the_model_are_trained_as_asked(bias):
    base = tiny_bert()
    biases = {name: p.numel() for name, p in base.named_parameters() if name.endswith("bias")}
    extra = sum(n for name, n in biases.items() if bias == "all" or name.endswith(".output.dense.bias"))
    model = adapter(base, adapter_position="before", bias=bias)
    assert trainable(model) == 4 * 3 * 24 + extra
