"""Both forms on one model, and what the adapter form refuses."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from surm import SurmConfig
from tests.tuners.helpers import (
    IMAGES,
    TWO,
    X,
    adapt,
    adapter_config,
    body_in_numpy,
    dense,
    net,
    tiny_vit,
    trainable,
    trained,
)


def both_forms():
    """Circulants beside the weights of the fused projections, adapters behind the sublayers, all active."""
    model = adapt(tiny_vit(), init_weights=False)
    model.add_adapter("behind", adapter_config())
    model.base_model.set_adapter(["default", "behind"])
    return model.eval()


def weights(model):
    return {name: p.clone() for name, p in model.named_parameters()}


def test_both_forms_act_together_as_their_dense_twin():
    model = adapt(net(), target_modules=["first"], init_weights=False)
    model.add_adapter("behind", adapter_config(structure="kronecker", target_modules=["second"]))
    base, layers = net(), model.base_model.model

    def expected(*active):
        first = base.first(X)
        if "default" in active:
            first = first + X @ dense(layers.first).mT
        second = base.second(torch.tanh(first)).detach()
        if "behind" in active:
            added = body_in_numpy(layers.second, second.numpy(), "kronecker", "gelu", "behind")
            second = second + torch.from_numpy(added)
        return base.head(torch.tanh(second))

    for active in (["default"], ["behind"], ["default", "behind"]):
        model.base_model.set_adapter(active)
        torch.testing.assert_close(model(X), expected(*active), rtol=0, atol=1e-13)
    rows = ["behind", "default", "__base__", "default", "behind"]
    output = model.eval()(X, adapter_names=rows)
    for row, name in enumerate(rows):
        torch.testing.assert_close(output[row], expected(name)[row], rtol=0, atol=1e-13)


def test_status_tells_what_each_module_has():
    model = both_forms()
    weight = {f"model.blocks.{index}.attn.qkv" for index in (0, 1)}
    behind = {f"model.blocks.{index}.{name}" for index in (0, 1) for name in ("ls1", "ls2")}
    layers = {status.name: status for status in model.get_layer_status()}
    assert layers.keys() == weight | behind
    for name, status in layers.items():
        own = "default" if name in weight else "behind"
        assert status.module_type == ("surm.SurmLinear" if name in weight else "surm.SurmAdapter")
        assert status.available_adapters == [own]
        assert status.active_adapters == ["default", "behind"]
        assert status.requires_grad == {own: True}
        assert status.devices == {own: ["cpu"]}
        assert status.enabled
        assert status.merged_adapters == []
    status = model.get_model_status()
    assert (status.peft_types, status.num_adapter_layers) == ({"default": "SURM", "behind": "SURM"}, 6)
    assert status.trainable_params == trainable(model) == 2 * 3 * 2 * 192 + 4 * 3 * 192
    assert (status.enabled, status.requires_grad) == (True, {"default": True, "behind": True})
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


def test_merging_is_refused_before_anything_is_merged():
    model = both_forms()
    output, before = model(IMAGES), weights(model)
    refused = (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.merge_adapter(["behind"]),
        lambda: model.merge_adapter(["default", "behind"], safe_merge=True),
        lambda: model.merge_and_unload(adapter_names=["behind"]),
        model.base_model.model.blocks[0].ls1.merge,
        lambda: model.base_model.model.blocks[0].ls1.merge(adapter_names=["behind"]),
    )
    for merge in refused:
        with pytest.raises(ValueError, match=r"form='adapter' cannot be merged.*unload\(\)") as error:
            merge()
        assert "\n" not in str(error.value)
    with pytest.raises((TypeError, ValueError), match="adapter_names should be a list of strings, got 'behind'"):
        model.base_model.model.blocks[0].ls1.merge(adapter_names="behind")
    assert weights(model).keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(IMAGES), output)
    assert not any(status.merged_adapters for status in model.get_layer_status())


def test_an_adapter_in_weight_form_beside_it_is_merged_alone():
    model = both_forms()
    output = model(IMAGES)
    model.base_model.set_adapter("default")
    one = model(IMAGES)
    assert (output - one).abs().max() > 1e-4
    model.base_model.set_adapter(["default", "behind"])
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-4)
    model.base_model.set_adapter("default")
    torch.testing.assert_close(model.merge_and_unload()(IMAGES), one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("forms", [("weight", "adapter"), ("adapter", "weight")])
def test_a_module_takes_one_form_and_a_refused_adapter_leaves_nothing_behind(forms):
    model = adapt(net(), form=forms[0], target_modules=["second"], init_weights=False)
    output, before, training = model(X), weights(model), trained(model)
    with pytest.raises(ValueError, match=f"module second: it has an adapter of form='{forms[0]}'.*one form") as error:
        model.add_adapter("other", SurmConfig(form=forms[1], target_modules=TWO))
    assert "\n" not in str(error.value)
    assert list(model.peft_config) == ["default"]
    assert type(model.base_model.model.first) is nn.Linear
    assert weights(model).keys() == before.keys()
    assert trained(model) == training
    assert torch.equal(model(X), output)
    model.add_adapter("other", SurmConfig(form=forms[1], target_modules=["first"], init_weights=False))


def test_each_form_is_saved_and_loaded_by_itself(tmp_path):
    model = both_forms()
    output = model(IMAGES)
    model.save_pretrained(tmp_path)
    folders = {"default": tmp_path, "behind": tmp_path / "behind"}
    stored = {name: load_file(folder / "adapter_model.safetensors") for name, folder in folders.items()}
    for name, tensors in stored.items():  # PEFT below 0.21 writes the numbers of others too, under their full names
        stored[name] = {key: t for key, t in tensors.items() if not any(f".{other}." in key for other in folders)}
    assert all("attn.qkv.surm_" in key for key in stored["default"])
    assert all(".surm_adapter." in key for key in stored["behind"])
    assert sum(t.numel() for t in stored["default"].values()) == 2 * 3 * 2 * 192
    assert sum(t.numel() for t in stored["behind"].values()) == 4 * 3 * 192
    for first, second in (("default", "behind"), ("behind", "default")):
        loaded = PeftModel.from_pretrained(tiny_vit(), folders[first], adapter_name=first)
        loaded.load_adapter(folders[second], second)
        loaded.base_model.set_adapter(["default", "behind"])
        assert torch.equal(loaded.eval()(IMAGES), output)


def test_adapters_cannot_be_turned_into_lora_or_weighed():
    model = get_peft_model(net(), adapter_config(target_modules=TWO))
    assert not getattr(model, "supports_lora_conversion", lambda: False)()  # PEFT below 0.19 has no conversion
    with pytest.raises(ValueError, match="adapter"):
        model.add_weighted_adapter(["default"], [0.5], "half")
