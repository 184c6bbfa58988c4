"""Adapters in every dtype, on every device, compiled, recomputed, copied and stored."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BertForSequenceClassification

from surm import SurmConfig
from tests.tuners.helpers import (
    DENSE,
    IDS,
    IMAGES,
    TWO,
    X,
    adapter,
    body_in_numpy,
    logits,
    net,
    tiny_bert,
    tiny_vit,
)

HALF = [torch.bfloat16, torch.float16]


def drop_and_linear(dtype=torch.float32):
    """A dropout, which has no dtype and no device, beside a layer that does."""
    torch.manual_seed(0)
    return nn.ModuleDict({"drop": nn.Dropout(), "linear": nn.Linear(12, 12)}).to(dtype)


def drop_config(structure="circulant"):
    return SurmConfig(
        form="adapter",
        structure=structure,
        target_modules=["drop", "linear"],
        adapter_width=12,
        init_weights=False,
    )


def parameters_of(model):
    return {name: p for name, p in model.named_parameters() if "surm_" in name}


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_a_base_in_half_precision_gives_its_dtype_near_the_float64_output(structure, autocast_adapter_dtype, dtype):
    torch.manual_seed(0)
    base = drop_and_linear(dtype)
    model = get_peft_model(base, drop_config(structure), autocast_adapter_dtype=autocast_adapter_dtype).eval()
    layer = model.base_model.model["drop"]
    # A dropout has no dtype: the adapter takes that of its neighbours.
    assert {p.dtype for p in layer.parameters()} == {torch.float32 if autocast_adapter_dtype else dtype}
    x = X.to(dtype)
    output = layer(x)
    assert output.dtype == dtype
    x = x.double().numpy()
    expected = x + body_in_numpy(layer, x, structure, "gelu")
    np.testing.assert_allclose(output.detach().double().numpy(), expected, rtol=1e-2, atol=1e-2)


def test_several_adapters_are_added_before_the_output_is_rounded():
    """2 ** -9 is half the distance of 1 from the next bfloat16 number, so that each of two alone rounds to nothing."""
    model = get_peft_model(drop_and_linear(torch.bfloat16), drop_config()).eval()
    model.add_adapter("other", drop_config())
    model.base_model.set_adapter(["default", "other"])
    layer = model.base_model.model["drop"]
    with torch.no_grad():
        for body in layer.surm_adapter.values():
            body.inner.r1.zero_()
            body.outer.bias.fill_(2**-8)
    ones = torch.ones(1, 12, dtype=torch.bfloat16)
    assert torch.equal(layer(ones), torch.full_like(ones, 1 + 2**-7))
    layer.set_adapter("other")
    assert torch.equal(layer(ones), ones)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_a_model_cast_later_takes_its_adapters_along(structure, dtype):
    model = get_peft_model(drop_and_linear(), drop_config(structure)).eval().to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.base_model.model["drop"](X.to(dtype)).dtype == dtype
    model.add_adapter("other", drop_config(structure))
    own = {p.dtype for name, p in model.named_parameters() if ".other." in name}
    assert own <= {dtype, torch.promote_types(dtype, torch.float32)}  # PEFT may keep what is trained in float32


@pytest.mark.parametrize("structure", ["circulant", "bottleneck"])
def test_autocast_reaches_the_adapter_and_its_gradients_are_float32(structure):
    model = adapter(tiny_bert(), structure=structure, init_weights=False).eval()
    expected = logits(model, IDS)
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in parameters_of(model).items()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = logits(model, IDS)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)
    output.float().square().sum().backward()
    for name, parameter in parameters_of(model).items():
        assert parameter.grad.dtype == torch.float32
        assert nn.functional.cosine_similarity(parameter.grad.flatten(), gradients[name].flatten(), dim=0) > 0.95


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_loaded_adapter_takes_dtype_and_device_as_lora_on_the_layer_beside_it_does(
    tmp_path, low_cpu_mem_usage, autocast_adapter_dtype
):
    torch.manual_seed(1)
    get_peft_model(drop_and_linear(), drop_config()).save_pretrained(tmp_path / "surm")
    get_peft_model(drop_and_linear(), LoraConfig(target_modules=["linear"])).save_pretrained(tmp_path / "lora")
    for dtype, device in ((torch.bfloat16, "cpu"), (torch.float64, "cpu"), (torch.bfloat16, "meta")):
        options = {"low_cpu_mem_usage": low_cpu_mem_usage, "autocast_adapter_dtype": autocast_adapter_dtype}
        lora = PeftModel.from_pretrained(drop_and_linear(dtype).to(device), tmp_path / "lora", **options)
        expected = {(p.dtype, p.device) for name, p in lora.named_parameters() if "lora_" in name}
        model = PeftModel.from_pretrained(drop_and_linear(dtype).to(device), tmp_path / "surm", **options)
        assert {(p.dtype, p.device) for p in parameters_of(model).values()} == expected
        if device == "cpu":
            layer = model.base_model.model["drop"]
            expected_output = X.numpy() + body_in_numpy(layer, X.numpy(), "circulant", "gelu")
            output = layer(X.to(dtype)).detach().double().numpy()
            tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-7
            np.testing.assert_allclose(output, expected_output, rtol=tolerance, atol=tolerance)


def test_an_adapter_can_be_made_without_storage_and_filled_later(tmp_path):
    model = adapter(tiny_bert(), init_weights=False).eval()
    model.save_pretrained(tmp_path)
    empty = get_peft_model(tiny_bert(), SurmConfig(form="adapter"), low_cpu_mem_usage=True).eval()
    assert all(p.is_meta for p in parameters_of(empty).values())
    assert not any(p.is_meta for name, p in empty.named_parameters() if "surm_" not in name)
    empty.load_adapter(tmp_path, "loaded", low_cpu_mem_usage=True)
    assert all(p.is_meta == (".loaded." not in name) for name, p in parameters_of(empty).items())
    empty.set_adapter("loaded")
    assert torch.equal(logits(empty, IDS), logits(model, IDS))


def test_what_tells_the_place_of_an_adapter_is_not_stored():
    model = adapter(tiny_bert())
    near = {name: buffer for name, buffer in model.named_buffers() if name.endswith(".near")}
    assert len(near) == 4
    assert all(buffer.numel() == 0 for buffer in near.values())
    assert not near.keys() & model.state_dict().keys()


# --- checkpointing, compilation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["timm", "reentrant", "not reentrant"])
def test_gradient_checkpointing_keeps_the_gradients(checkpointing):
    gradients = []
    base = tiny_vit if checkpointing == "timm" else tiny_bert
    for recompute in (False, True):
        model = base()
        if recompute and checkpointing != "timm":
            # Before PEFT wraps the model, which then lets a gradient reach the frozen embeddings' output.
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model = adapter(model, init_weights=False).train()
        if recompute and checkpointing == "timm":
            model.base_model.model.set_grad_checkpointing()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        logits(model, IDS if base is tiny_bert else IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient.abs().max() > 0 for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("structure", "backend"),
    [
        *[(structure, backend) for structure in [*DENSE, "bottleneck"] for backend in ("eager", "aot_eager")],
        pytest.param("circulant", "inductor", marks=pytest.mark.slow),
        pytest.param("bottleneck", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break_with_the_same_gradients(structure, backend):
    torch.compiler.reset()  # what other tests compiled counts towards torch's limit
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    model.add_adapter("other", SurmConfig(form="adapter", target_modules=["first"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend=backend)
    output = model(X)
    torch.testing.assert_close(compiled(X), output)
    expected = torch.autograd.grad(output.square().sum(), list(parameters_of(model).values()))
    gradients = torch.autograd.grad(compiled(X).square().sum(), list(parameters_of(model).values()))
    torch.testing.assert_close(gradients, expected)
    model.set_adapter("other")
    torch.testing.assert_close(compiled(X), model(X))
    assert (compiled(X) - output).abs().max() > 1e-3


# --- copies -----------------------------------------------------------------------------------------------------------


def stored(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch.save": stored}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("structure", ["circulant+skew_circulant", "bottleneck"])
def test_copies_are_equal_and_independent(structure, kind):
    model = adapter(net(), structure=structure, target_modules=TWO, init_weights=False)
    output = model(X)
    twin = COPIES[kind](model)
    assert twin.peft_config == model.peft_config
    assert torch.equal(twin(X), output)
    with torch.no_grad():
        for parameter in parameters_of(twin).values():
            parameter.zero_()
    assert torch.equal(model(X), output)
    assert torch.equal(twin(X), net()(X))
    twin.add_adapter("other", SurmConfig(form="adapter", target_modules=TWO))
    assert list(model.peft_config) == ["default"]


def test_an_adapted_model_survives_its_own_class():
    """A copy keeps transformers' class inside and can be taken apart."""
    plain = copy.deepcopy(adapter(tiny_bert(), init_weights=False)).unload()
    assert type(plain) is BertForSequenceClassification
    assert torch.equal(logits(plain.eval(), IDS), logits(tiny_bert(), IDS))
