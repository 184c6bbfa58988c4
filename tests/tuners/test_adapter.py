import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from scipy.special import erf
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, Dinov2Config, RobertaConfig, ViTConfig

from surm import SurmConfig
from surm.structures import STRUCTURES
from surm.tuners import SurmAdapter, SurmLinear
from surm.tuners.targets import adapter_sites, projection_names
from tests.tuners.helpers import DENSE, adapt, net, tiny_bert, tiny_vit

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(12).reshape(2, 6)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
X = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 12)
TWO = ["first", "second"]
ALL = [*STRUCTURES, "circulant+skew_circulant", "bottleneck"]

ACTIVATIONS = {  # in NumPy
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "identity": lambda x: x,
}


def adapter(model, **settings):
    return adapt(model, form="adapter", **settings)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def sites(model):
    return {name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmAdapter)}


def numbers(module):
    """The parameters in float64, without surm."""
    return {name.rpartition(".")[-1]: p.detach().double().numpy() for name, p in module.named_parameters()}


def body_in_numpy(layer, x, structure, activation, name="default"):
    """What an adapter adds to x."""
    act, body = ACTIVATIONS[activation], layer.surm_adapter[name]
    inner, outer = numbers(body.inner), numbers(body.outer)
    if structure == "bottleneck":
        hidden = act(x @ inner["weight"].T + inner.get("bias", 0.0))
        return hidden @ outer["weight"].T + outer.get("bias", 0.0)
    return act(x @ DENSE[structure](inner).T) + outer.get("bias", 0.0)


def logits(model, x):
    output = model(x)
    return getattr(output, "logits", output)


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [*DENSE, "bottleneck"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_that_of_the_module_plus_the_activated_product_plus_a_bias(structure, activation, bias):
    model = adapter(
        net(),
        structure=structure,
        target_modules=["first"],
        adapter_activation=activation,
        adapter_bias=bias,
        init_weights=False,
    )
    layer = model.base_model.model.first
    x = layer.base_layer(X).detach().numpy()
    added = body_in_numpy(layer, x, structure, activation)
    assert np.abs(added).max() > 1e-3
    assert ("bias" in numbers(layer.surm_adapter["default"].outer)) == bias
    np.testing.assert_allclose(layer(X).detach().numpy(), x + added, rtol=0, atol=1e-13)


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [tiny_vit, tiny_bert])
def test_the_start_is_exactly_the_base_model_and_the_first_step_leaves_it(structure, dtype, base):
    model = base().to(dtype)
    x = IDS if base is tiny_bert else IMAGES.to(dtype)
    before = logits(model, x)
    adapted = adapter(model, structure=structure).eval()
    assert torch.equal(logits(adapted, x), before)
    logits(adapted, x).float().square().sum().backward()
    # The zero factor (the bottleneck's: up) and the bias move; the random factor waits for them.
    moved = {
        name.split("surm_adapter.default.")[1]
        for name, p in adapted.named_parameters()
        if p.requires_grad and p.grad.abs().max() > 0
    }
    zero = {
        "circulant+skew_circulant": {"inner.parts.0.r1", "inner.parts.1.r1"},
        "toeplitz": {"inner.t1"},
        "kronecker": {"inner.A"},
        "ldr": {"inner.G"},
        "low_rank": {"inner.B"},
        "bottleneck": {"outer.weight"},
    }.get(structure, {"inner.r1"})
    assert moved == zero | {"outer.bias"}


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "bottleneck"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "tanh", "identity"])
def test_training_moves_the_adapters_only_and_lowers_the_loss(structure, activation):
    model = adapter(net(), structure=structure, target_modules=TWO, adapter_activation=activation)
    target = adapter(net(), seed=5, structure="ldr", target_modules=TWO, init_weights=False)(X).detach() + 0.3
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(20):
        loss = (model(X) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert all("surm_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_dropout_acts_on_the_activation_and_only_in_training(structure):
    model = adapter(net(), structure=structure, target_modules=["first"], init_weights=False, dropout=0.5)
    layer = model.base_model.model.first
    body, x = layer.surm_adapter["default"], layer.base_layer(X)
    torch.manual_seed(0)
    kept = nn.functional.dropout(nn.functional.gelu(body.inner(x)), 0.5)
    added = kept @ body.outer.weight.mT + body.outer.bias if structure == "bottleneck" else kept + body.outer.bias
    torch.manual_seed(0)
    torch.testing.assert_close(layer(X), x + added, rtol=0, atol=1e-13)
    model.eval()
    expected = x.detach().numpy() + body_in_numpy(layer, x.detach().numpy(), structure, "gelu")
    np.testing.assert_allclose(layer(X).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_scales_of_the_authors():
    """N(0, 0.02^2) for the random factor of every family (authors' code), zero for the others."""
    for structure in ("circulant", "toeplitz", "kronecker"):
        model = adapter(tiny_vit(), structure=structure, init_weights="authors")
        zero, random = model.base_model.model.blocks[0].ls1.surm_adapter["default"].inner.parameters()
        assert not zero.any()
        assert random.std().item() == pytest.approx(0.02, rel=0.25)


# --- counts -----------------------------------------------------------------------------------------------------------


def base_sized(backbone):
    with torch.device("meta"):
        if backbone == "bert":
            return BertModel(BertConfig())
        return timm.create_model("vit_base_patch16_224", pretrained=False)


@pytest.mark.parametrize("backbone", ["vit", "bert"])
@pytest.mark.parametrize("structure", ["circulant", "toeplitz", "kronecker"])
def test_houlsby_trains_55296_parameters_and_36864_without_biases_and_pfeiffer_half_of_them(backbone, structure):
    """Figure 10's adapters: 24 (2 * 768 + 768) and 24 * 2 * 768 parameters."""
    for bias, count in ((True, 55_296), (False, 36_864)):
        for targets, expected in (("houlsby", count), ("pfeiffer", count // 2)):
            model = adapter(base_sized(backbone), structure=structure, target_modules=targets, adapter_bias=bias)
            assert trainable(model) == expected
            assert all(p.is_meta for p in model.parameters())  # a dropout's adapter is where its neighbours are


def test_houlsby_bottlenecks_of_size_16_have_608640_parameters():
    options = {"structure": "bottleneck", "structure_options": {"size": 16}}
    assert trainable(adapter(base_sized("bert"), **options)) == 608_640
    assert trainable(adapter(base_sized("bert"), **options, adapter_bias=False)) == 24 * 2 * 768 * 16
    assert trainable(adapter(base_sized("bert"), structure="bottleneck")) == 608_640


# --- where ------------------------------------------------------------------------------------------------------------


def from_config(config):
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def timm_vit(**settings):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3, **settings).eval()


def names(blocks, *endings):
    return {f"{blocks}.{index}.{ending}" for index in range(2) for ending in endings}


HEAD = {"num_labels": 3}
BERT_SITES = {
    ("houlsby", "after"): ("attention.output.dropout", "output.dropout"),
    ("houlsby", "before"): ("attention.output.dense", "output.dense"),
    ("pfeiffer", "after"): ("output.LayerNorm",),
    ("pfeiffer", "before"): ("output.LayerNorm",),
}
VIT = ("attention.o_proj", "mlp.fc2")
TIMM_SITES = {
    ("houlsby", "after"): ("ls1", "ls2"),
    ("houlsby", "before"): ("attn.proj", "mlp.fc2"),
    ("pfeiffer", "after"): ("ls2",),
    ("pfeiffer", "before"): ("mlp.fc2",),
}
DINOV2_SITES = {
    ("houlsby", "after"): ("layer_scale1", "layer_scale2"),
    ("houlsby", "before"): VIT,
    ("pfeiffer", "after"): ("layer_scale2",),
    ("pfeiffer", "before"): ("mlp.fc2",),
}
VIT_SITES = {(s, p): VIT if s == "houlsby" else VIT[1:] for s in ("houlsby", "pfeiffer") for p in ("after", "before")}
MODELS = {
    "bert": (tiny_bert, "bert.encoder.layer", BERT_SITES),
    "bert decoder": (
        lambda: from_config(BertConfig(**TINY, is_decoder=True, add_cross_attention=True)),
        "encoder.layer",
        BERT_SITES,
    ),
    "roberta": (lambda: from_config(RobertaConfig(**TINY)), "encoder.layer", BERT_SITES),
    "vit": (lambda: from_config(ViTConfig(**TINY)), "layers", VIT_SITES),
    "dinov2": (lambda: from_config(Dinov2Config(**TINY)), "encoder.layer", DINOV2_SITES),
    "timm": (timm_vit, "blocks", TIMM_SITES),
    "timm with LayerScale": (lambda: timm_vit(init_values=1e-2), "blocks", TIMM_SITES),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("target", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("position", ["after", "before"])
def test_adapters_follow_exactly_these_modules(model, target, position):
    make, blocks, table = MODELS[model]
    adapted = adapter(make(), target_modules=target, adapter_position=position)
    assert sites(adapted) == names(blocks, *table[target, position])
    # What is saved in place of the word finds the same modules again, and so does a second adapter.
    again = adapter(make(), target_modules=sorted(adapted.peft_config["default"].target_modules))
    assert sites(again) == sites(adapted)
    assert adapter_sites(adapted, target, position) == adapter_sites(make(), target, position)


def test_houlsby_is_the_default_and_blocks_can_be_selected():
    assert sites(adapter(tiny_vit())) == names("blocks", "ls1", "ls2")
    one = adapter(tiny_vit(), target_modules="houlsby", layers_to_transform=[1], layers_pattern="blocks")
    assert sites(one) == {"blocks.1.ls1", "blocks.1.ls2"}


def test_a_gated_feed_forward_network_is_known():
    model = adapter(from_config(Dinov2Config(**TINY, use_swiglu_ffn=True)), adapter_position="before")
    assert sites(model) == names("encoder.layer", "attention.o_proj", "mlp.down_proj")


def test_a_dropout_that_serves_both_sides_is_refused():
    model = from_config(ViTConfig(**TINY, hidden_dropout_prob=0.1))
    with pytest.raises(
        ValueError, match=r"ViTModel has one dropout for both sides.*adapter_position='before'"
    ) as error:
        adapter(model)
    assert "\n" not in str(error.value)
    assert sites(adapter(model, adapter_position="before")) == names("layers", *VIT)


def test_an_unknown_model_or_word_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match=r"Net of model type 'custom' has no layers called blocks\.#\.ls1.*pass target"
    ):
        adapter(net())
    with pytest.raises(ValueError, match="sites='parallel' is not known: give houlsby or pfeiffer"):
        adapter_sites(tiny_vit(), "parallel")
    with pytest.raises(ValueError, match=r"parts=.'q', 'mlp2'. is not known: give some of q, k, v, o, mlp"):
        projection_names(tiny_vit(), ["q", "mlp2"])
    with pytest.raises(ValueError, match="position='behind' is not known: give after or before"):
        adapter_sites(tiny_vit(), "houlsby", "behind")


SUBLAYERS = {  # what the sublayer's own modules make of the input that the hook sees, without surm
    tiny_bert: (
        "bert.encoder.layer.1.attention.output",
        lambda module, args: (module.dropout.base_layer(module.dense(args[0])), args[1], module.LayerNorm),
    ),
    tiny_vit: (
        "blocks.1",
        lambda module, args: (module.ls1.base_layer(module.attn(module.norm1(args[0]))), args[0], None),
    ),
}


@pytest.mark.parametrize("base", SUBLAYERS)
def test_the_adapter_comes_before_the_residual_and_the_normalisation(base):
    model = adapter(base(), init_weights=False).eval()
    name, sublayer = SUBLAYERS[base]
    module = model.base_model.model.get_submodule(name)
    seen = {}
    hook = module.register_forward_hook(lambda _, args, output: seen.update(args=args, output=output))
    model(IDS if base is tiny_bert else IMAGES)
    hook.remove()
    before, residual, norm = sublayer(module, seen["args"])
    layer = module.dropout if base is tiny_bert else module.ls1
    adapted = torch.from_numpy(
        before.detach().double().numpy() + body_in_numpy(layer, before.detach().double().numpy(), "circulant", "gelu")
    ).float()
    expected = adapted + residual
    expected = norm(expected) if norm is not None else expected + module.ls2(module.mlp(module.norm2(expected)))
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(seen["output"], expected, rtol=1e-4, atol=1e-4)


class Pair(nn.Linear):
    """A layer with a second result."""

    def forward(self, x):
        return super().forward(x), x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.rms = nn.LayerNorm(12), timm.layers.RmsNorm(12)
        self.scale = timm.layers.LayerScale(12)
        self.drop, self.pair, self.batch, self.image = nn.Dropout(), Pair(12, 5), nn.BatchNorm1d(12), nn.Conv2d(1, 1, 1)
        self.embedding = nn.Embedding(12, 12)

    def forward(self, x):
        return self.pair(self.drop(self.scale(self.rms(self.norm(x)))))


def test_normalisations_scales_and_layers_with_two_results_can_be_followed():
    torch.manual_seed(0)
    model = adapter(Twice(), target_modules=["norm", "rms", "scale", "drop", "pair"], adapter_width=12).eval()
    layers = model.base_model.model
    assert [getattr(layers, name).features for name in ("norm", "rms", "scale", "drop", "pair")] == [12] * 4 + [5]
    x = torch.randn(3, 12)
    with torch.no_grad():
        layers.pair.surm_adapter["default"].outer.bias += 1.0
    first, second = model(x)
    base = layers.pair.base_layer(layers.scale(layers.rms(layers.norm(x))))
    torch.testing.assert_close(first, base[0] + 1.0)
    torch.testing.assert_close(second, base[1])


@pytest.mark.parametrize(
    ("target", "error", "sentence"),
    [
        ("drop", ValueError, "Target module drop: Dropout has no width of its own and Twice .*give adapter_width"),
        ("batch", TypeError, "Target module batch of type BatchNorm1d is not supported: only linear layers"),
        ("image", TypeError, "Target module image of type Conv2d is not supported"),
        ("embedding", TypeError, "Target module embedding of type Embedding is not supported"),
    ],
)
def test_other_modules_are_refused_in_one_sentence(target, error, sentence):
    with pytest.raises(error, match=sentence) as refused:
        adapter(Twice(), target_modules=[target])
    assert "\n" not in str(refused.value)


# --- projections of the weight form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "blocks", "o", "mlp"),
    [
        (tiny_bert, "bert.encoder.layer", "attention.output.dense", ("intermediate.dense", "output.dense")),
        (MODELS["roberta"][0], "encoder.layer", "attention.output.dense", ("intermediate.dense", "output.dense")),
        (MODELS["vit"][0], "layers", "attention.o_proj", ("mlp.fc1", "mlp.fc2")),
        (MODELS["dinov2"][0], "encoder.layer", "attention.o_proj", ("mlp.fc1", "mlp.fc2")),
        (timm_vit, "blocks", "attn.proj", ("mlp.fc1", "mlp.fc2")),
        (lambda: timm_vit(global_pool="map"), "blocks", "attn.proj", ("mlp.fc1", "mlp.fc2")),
    ],
    ids=["bert", "roberta", "vit", "dinov2", "timm", "timm with attention pooling"],
)
def test_output_and_feed_forward_projections_are_known(make, blocks, o, mlp):
    for parts, endings in ((["o"], (o,)), (["mlp"], mlp)):
        model = adapt(make(), target_modules=projection_names(make(), parts))
        found = {name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmLinear)}
        assert found == names(blocks, *endings)
    model = adapt(make(), target_modules=projection_names(make(), ["q", "k", "v", "o", "mlp"]))
    fused = any(name.endswith("qkv") for name in model.peft_config["default"].target_modules)
    assert len([m for m in model.modules() if isinstance(m, SurmLinear)]) == 2 * (4 if fused else 6)


# --- several adapters, both forms -------------------------------------------------------------------------------------


def test_adapters_are_parallel_and_can_be_switched_disabled_deleted_and_unloaded():
    base = net()
    model = adapter(copy.deepcopy(base), target_modules=TWO, init_weights=False)
    torch.manual_seed(3)
    other = SurmConfig(form="adapter", structure="bottleneck", target_modules=["first"], init_weights=False)
    model.add_adapter("other", other)
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
    model.base_model.set_adapter("other")
    model.delete_adapter("default")
    assert_active("other")
    assert not any("default" in name for name, _ in model.named_parameters())
    plain = model.unload()
    assert type(plain.first) is nn.Linear
    assert torch.equal(plain(X), base(X))


@pytest.mark.parametrize("base", [tiny_vit, tiny_bert, lambda: timm_vit(init_values=0.1)])
def test_unloading_gives_back_modules_without_a_weight(base):
    x = IDS if base is tiny_bert else IMAGES
    plain = adapter(base(), init_weights=False).unload().eval()
    assert torch.equal(logits(plain, x), logits(base(), x))
    assert not any("surm" in type(module).__module__ for module in plain.modules())


def both_forms():
    model = adapt(tiny_vit(), init_weights=False)
    model.add_adapter("behind", SurmConfig(form="adapter", init_weights=False))
    model.base_model.set_adapter(["default", "behind"])
    return model.eval()


def weights(model):
    return {name: p.clone() for name, p in model.named_parameters()}


def test_both_forms_work_on_one_model_and_merging_is_refused_before_anything_is_merged():
    model = both_forms()
    output, before = model(IMAGES), weights(model)
    model.base_model.set_adapter("default")
    one = model(IMAGES)
    assert (output - one).abs().max() > 1e-4
    model.base_model.set_adapter(["default", "behind"])
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_adapter(["behind"])):
        with pytest.raises(ValueError, match=r"form='adapter' cannot be merged.*unload\(\)") as error:
            merge()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be merged"):
        model.base_model.model.blocks[0].ls1.merge()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(model(IMAGES), output)
    model.merge_adapter(["default"])
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    model.base_model.set_adapter("default")
    torch.testing.assert_close(model.merge_and_unload()(IMAGES), one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("forms", [("weight", "adapter"), ("adapter", "weight")])
def test_one_module_takes_one_form(forms):
    model = adapt(net(), form=forms[0], target_modules=["first"])
    with pytest.raises(ValueError, match=f"module first: it has an adapter of form='{forms[0]}'.*one form") as error:
        model.add_adapter("other", SurmConfig(form=forms[1], target_modules=["first"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bias", ["all", "surm_only"])
def test_biases_of_the_model_are_trained_as_asked(bias):
    base = tiny_bert()
    biases = {name: p.numel() for name, p in base.named_parameters() if name.endswith("bias")}
    extra = sum(n for name, n in biases.items() if bias == "all" or name.endswith(".output.dense.bias"))
    model = adapter(base, adapter_position="before", bias=bias)
    assert trainable(model) == 4 * 3 * 24 + extra


# --- collapse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("structure", ["circulant", "skew_circulant", "circulant+skew_circulant"])
@pytest.mark.parametrize("terms", [1, 3])
def test_collapsing_keeps_the_output_and_stores_one_vector(tmp_path, form, structure, terms):
    model = adapt(
        tiny_vit(), form=form, structure=structure, structure_options={"terms": terms}, init_weights=False
    ).eval()
    output, count = model(IMAGES), trainable(model)
    model.collapse()
    torch.testing.assert_close(model(IMAGES), output, rtol=0, atol=1e-5)
    matrices = 2 * (3 if form == "weight" else 2) * len(structure.split("+"))
    biases = 0 if form == "weight" else 4 * 192
    assert count == 2 * terms * 192 * matrices + biases
    assert trainable(model) == 192 * matrices + biases
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == 192 * matrices + biases
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert loaded.peft_config["default"].structure_options == {"parametrization": "direct", "terms": 1}
    assert torch.equal(loaded(IMAGES), model(IMAGES))


@pytest.mark.parametrize("structure", ["toeplitz", "kronecker", "ldr", "low_rank", "circulant+kronecker", "bottleneck"])
def test_collapsing_another_structure_is_refused_and_changes_nothing(structure):
    model = adapter(tiny_vit(), structure=structure, init_weights=False)
    model.add_adapter("circulant", SurmConfig(form="adapter", init_weights=False))
    model.base_model.set_adapter(["circulant", "default"])
    before = {name: p.shape for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=f"{structure.split('+')[-1]} cannot be collapsed") as error:
        model.collapse()
    assert "\n" not in str(error.value)
    assert {name: p.shape for name, p in model.named_parameters()} == before
    model.collapse("circulant")
    with pytest.raises(ValueError, match="no adapter 'other': give one of default, circulant"):
        model.collapse("other")


# --- save and load ----------------------------------------------------------------------------------------------------

ADAPTERS = {
    "tiny_bert": {"structure": "toeplitz", "modules_to_save": ["classifier"]},
    "tiny_vit": {"structure": "circulant+skew_circulant", "target_modules": "pfeiffer", "adapter_activation": "tanh"},
    "net": {"structure": "bottleneck", "structure_options": {"size": 5}, "target_modules": TWO},
}
BASES = {"tiny_bert": (tiny_bert, IDS), "tiny_vit": (tiny_vit, IMAGES), "net": (net, X)}

LOAD = """
import sys, torch, surm
from pathlib import Path
from peft import PeftModel
from tests.tuners import helpers
for folder in Path(sys.argv[1]).iterdir():
    model = PeftModel.from_pretrained(getattr(helpers, folder.name)(), folder, adapter_name="elsewhere").eval()
    output = model(torch.load(folder / "input.pt"))
    torch.save(getattr(output, "logits", output), folder / "output.pt")
"""


def test_saved_adapters_give_the_same_bits_in_another_process(tmp_path):
    outputs = {}
    for name, settings in ADAPTERS.items():
        base, x = BASES[name]
        model = adapter(base(), init_weights=False, **settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        outputs[name] = logits(model, x)
        model.save_pretrained(tmp_path / name)
        torch.save(x, tmp_path / name / "input.pt")
        stored = load_file(tmp_path / name / "adapter_model.safetensors")
        assert not any("default" in key for key in stored)
        assert sum(t.numel() for t in stored.values()) == trainable(model)
        low = PeftModel.from_pretrained(base(), tmp_path / name, low_cpu_mem_usage=True).eval()
        assert torch.equal(logits(low, x), outputs[name])
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", LOAD, tmp_path], check=True, env=environment)
    for name, output in outputs.items():
        assert torch.equal(torch.load(tmp_path / name / "output.pt"), output)


def test_the_file_holds_the_matrices_and_biases_by_module(tmp_path):
    model = adapter(tiny_bert(), target_modules="pfeiffer")
    model.save_pretrained(tmp_path)
    assert {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()} == {
        f"base_model.model.bert.encoder.layer.{layer}.output.LayerNorm.surm_adapter.{name}": shape
        for layer in (0, 1)
        for name, shape in (("inner.r1", (1, 24)), ("inner.r2", (1, 24)), ("outer.bias", (24,)))
    }


# --- dtypes, checkpointing, compilation -------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_a_bfloat16_base_gives_bfloat16_near_the_float64_output(structure, autocast_adapter_dtype):
    config = SurmConfig(
        form="adapter", structure=structure, target_modules=["drop"], adapter_width=12, init_weights=False
    )
    base = nn.ModuleDict({"drop": nn.Dropout(), "linear": nn.Linear(12, 12)}).bfloat16()
    torch.manual_seed(0)
    model = get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype).eval()
    layer = model.base_model.model["drop"]
    # A dropout has no dtype: the adapter takes that of its neighbours.
    dtypes = {p.dtype for p in layer.parameters()}
    assert dtypes == {torch.float32 if autocast_adapter_dtype else torch.bfloat16}
    x = X.bfloat16()
    output = layer(x)
    assert output.dtype == torch.bfloat16
    x = x.double().numpy()
    expected = x + body_in_numpy(layer, x, structure, "gelu")
    np.testing.assert_allclose(output.detach().double().numpy(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_autocast_reaches_the_adapter(structure):
    model = adapter(tiny_bert(), structure=structure, init_weights=False).eval()
    expected = logits(model, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        output = logits(model, IDS)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("base", [tiny_vit, tiny_bert])
def test_gradient_checkpointing_keeps_the_gradients(base):
    gradients = []
    for checkpointing in (False, True):
        model = adapter(base(), init_weights=False).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inner = model.base_model.model
        if checkpointing:
            inner.gradient_checkpointing_enable() if base is tiny_bert else inner.set_grad_checkpointing()
        logits(model, IDS if base is tiny_bert else IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("structure", ["circulant", "kronecker", "bottleneck"])
def test_compiles_without_a_graph_break(structure):
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize("structure", ["circulant+skew_circulant", "bottleneck"])
def test_copies_are_equal_and_independent(structure):
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    output = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), output)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "surm_" in name:
                parameter.zero_()
    assert torch.equal(model(X), output)
    assert torch.equal(twin(X), net()(X))
