import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from surm.models import load_backbone, split_fused_projections


def test_outputs_and_gradients_are_those_of_the_fused_layer():
    torch.manual_seed(0)
    module = load_backbone("tiny_vit", num_labels=3).module.double()
    images = torch.randn(4, 3, 28, 28, dtype=torch.float64)
    fused = module(images)
    fused.square().sum().backward()
    gradient = module.blocks[1].attn.qkv.weight.grad
    module.zero_grad()

    split_fused_projections(module)
    split = module(images)
    split.square().sum().backward()
    torch.testing.assert_close(split, fused, rtol=0, atol=1e-12)
    parts = [module.blocks[1].attn.qkv.get_submodule(f"{part}_proj").weight.grad for part in "qkv"]
    torch.testing.assert_close(torch.cat(parts), gradient, rtol=0, atol=1e-12)


def test_lora_on_vit_base_trains_as_many_parameters_as_on_bert_base():
    """Section 6: 55k trainable parameters for query, key and value; 12 layers x 3 x (768 + 768)."""
    with torch.device("meta"):  # counting needs no weights
        module = split_fused_projections(timm.create_model("vit_base_patch16_224", num_classes=2))
    for targets, expected in ((["q_proj", "k_proj", "v_proj"], 55_296), (["q_proj", "v_proj"], 36_864)):
        model = get_peft_model(module, LoraConfig(r=1, target_modules=targets))
        assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected
        module = model.unload()


def test_layers_without_bias_frozen_layers_and_the_random_state_stay_as_they_are():
    block = nn.Module()
    block.qkv = nn.Linear(4, 12, bias=False).requires_grad_(False)
    weight, state = block.qkv.weight.clone(), torch.get_rng_state()
    split_fused_projections(block)
    assert torch.get_rng_state().equal(state)
    assert block.qkv.k_proj.weight.equal(weight[4:8])
    assert block.qkv.k_proj.bias is None
    assert not any(parameter.requires_grad for parameter in block.parameters())


def test_models_without_fused_layers_are_untouched():
    module = load_backbone("tiny_bert", num_labels=2).module
    names = [name for name, _ in module.named_modules()]
    assert [name for name, _ in split_fused_projections(module).named_modules()] == names
