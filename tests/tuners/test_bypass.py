"""Layers whose weight a model uses without calling them."""

import copy
import pickle

import pytest
import timm
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import linear

from surm import SurmConfig
from surm.methods.registry import make_method
from surm.models.backbone import Backbone
from surm.tuners.bypass import refuse_bypassed, suspects, watch

SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 2}
# Families of timm that use the weight of `qkv` themselves, and some that call the layer, with their sizes in small.
BYPASSING = {
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "vit_base_patch16_dinov3_qkvb": SMALL,
    "vit_base_patch16_rope_reg1_gap_256": SMALL,
    "swinv2_tiny_window8_256": {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_classes": 2},
}
CALLING = {
    "vit_base_patch16_224": SMALL,
    "deit_small_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 224, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_classes": 2},
    "vit_base_patch16_dinov3": SMALL,  # of EVA's file, without a bias
}


def build(name):
    return timm.create_model(name, **{**BYPASSING, **CALLING}[name])


def image_size(module):
    return module.patch_embed.img_size[0]


def qkv(module):
    return [name for name, _ in module.named_modules() if name.endswith("qkv")]


def forward(module):
    side = image_size(module)
    return lambda: module(torch.zeros(1, 3, side, side))


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", BYPASSING)
def test_a_bypassed_layer_is_named_before_anything_is_adapted(name):
    module = build(name).train()
    first = qkv(module)[0]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"uses the weight of {first} and .* more without calling the layer"):
        refuse_bypassed(module, qkv(module), forward(module))
    assert torch.get_rng_state().equal(state)
    assert all(part.training for part in module.modules())
    assert not any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", CALLING)
def test_layers_that_are_called_pass(name):
    module = build(name)
    refuse_bypassed(module, qkv(module), forward(module))


@pytest.mark.sample(4)
@pytest.mark.parametrize("method", ["circulant", "lora", "peft_vera"])
def test_no_method_trains_what_its_model_bypasses(method):
    module = build("beit_base_patch16_224")
    backbone = Backbone(module, ("head",), "image", "none", 32, (0.5,) * 3, (0.5,) * 3)
    settings = {"name": method, "rank": 2, "alpha": 1.0, "dropout": 0.0, "arguments": {}, "parametrization": None}
    with pytest.raises(ValueError, match=r"Beit uses the weight of blocks\.0\.attn\.qkv and 1 more without calling"):
        make_method(settings).apply(backbone, {"form": "weight", "parts": ["q", "k", "v"]})


class Block(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.proj, self.use = nn.Linear(4, 4), use

    def forward(self, x):
        return self.use(self, x)


USES = {  # what a module does with its layer's weight, and whether that bypasses the layer
    "linear": (lambda self, x: linear(x, self.proj.weight, self.proj.bias), True),
    "matmul": (lambda self, x: x @ self.proj.weight.T, True),
    "einsum": (lambda self, x: torch.einsum("bi,oi->bo", x, self.proj.weight), True),
    "cast": (lambda self, x: linear(x, self.proj.weight.to(x.dtype)), True),
    "joined": (lambda self, x: linear(x, torch.cat([self.proj.weight, self.proj.weight])), True),
    "called": (lambda self, x: self.proj(x), False),
    "type asked": (lambda self, x: self.proj(x.to(self.proj.weight.dtype)), False),
    "shape asked": (lambda self, x: self.proj(x[..., : self.proj.weight.shape[1]]), False),
    "called and penalised": (lambda self, x: self.proj(x) + self.proj.weight.square().mean(), False),
    "not used": (lambda self, x: x, False),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("plugged", [False, True])
def test_only_use_without_a_call_is_a_bypass(use, plugged):
    """With and without an adapter around the layer."""
    forward_of, bypassed = USES[use]
    model = nn.Sequential(Block(forward_of))
    if plugged:
        model = get_peft_model(model, SurmConfig(structure="circulant", target_modules=["proj"])).base_model.model
    else:
        watch(model, ["0.proj"])
    x = torch.ones(2, 4)
    if bypassed:
        with pytest.raises(ValueError, match=r"uses the weight of 0\.proj without calling"):
            model(x)
        with pytest.raises(ValueError, match=r"uses the weight of 0\.proj without calling"):
            refuse_bypassed(model, ["0.proj"], lambda: model(x))
    else:
        model(x)
        refuse_bypassed(model, ["0.proj"], lambda: model(x))
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_models_that_never_read_the_weight_are_not_watched():
    module = build("vit_base_patch16_224")
    assert suspects(module, qkv(module)) == []
    watch(module, qkv(module))
    assert not module._forward_hooks


def test_a_watched_model_is_copied_and_watched_on():
    model = build("beit_base_patch16_224")
    watch(model, qkv(model))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv"):
            again(torch.zeros(1, 3, 32, 32))
        again(torch.zeros(1, 3, 32, 32))  # once, no more


@pytest.mark.sample(4)
@pytest.mark.parametrize("change", ["none", "copied", "pickled", "second adapter"])
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_base_patch16_224"])
def test_the_plug_in_refuses_in_the_first_forward_pass(name, change):
    model = get_peft_model(build(name), SurmConfig(structure="circulant", target_modules=["qkv"]))
    if change == "second adapter":
        model.add_adapter("other", SurmConfig(structure="ldr", target_modules=["qkv"]))
    model = {"copied": copy.deepcopy, "pickled": lambda m: pickle.loads(pickle.dumps(m))}.get(change, lambda m: m)(
        model
    )
    images = torch.zeros(1, 3, 32, 32)
    if name.startswith("beit"):
        with pytest.raises(
            ValueError, match=r"Beit uses the weight of blocks\.0\.attn\.qkv and 1 more without calling"
        ):
            model(images)
    assert model(images).shape == (1, 2)
    assert not model.base_model.model._forward_hooks
    assert not model.base_model.model._forward_pre_hooks


def test_a_watched_model_is_compiled():
    model = get_peft_model(nn.Sequential(Block(USES["shape asked"][0])), SurmConfig(target_modules=["proj"]))
    x = torch.ones(2, 4)
    torch.testing.assert_close(torch.compile(model.base_model.model, backend="eager")(x), model(x))


def test_an_error_of_the_first_pass_stays_itself():
    model = nn.Sequential(Block(USES["linear"][0]))
    watch(model, ["0.proj"])
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(2, 5))
