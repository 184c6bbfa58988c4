"""Structures that are more than their own parameters: shared by layers, frozen by a seed, made from the weight."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn

from surm import SurmConfig
from surm.structures import STRUCTURES, build
from surm.structures.seeded import Seeded
from surm.tuners import SurmLinear
from tests.tuners.helpers import IDS, TWO, X, adapt, net, tiny_bert, tiny_vit
from tests.tuners.toys import TOYS, Mini

OPTIONS = {"structure_options": {"rank": 2}}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for toy in TOYS:
        monkeypatch.setitem(STRUCTURES, toy.name, toy)


def toy(model, structure, **settings):
    return adapt(model, **{"structure": structure, "init_weights": False, "target_modules": TWO, **OPTIONS, **settings})


def layers(model):
    return model.base_model.model.first, model.base_model.model.second


def array(tensor):
    return tensor.detach().double().numpy()


def shared(model, adapter="default"):
    return {name: array(p) for name, p in model.base_model.surm_shared[adapter][0].named_parameters()}


def cp(tensors, index):
    """By NumPy."""
    return np.einsum("r,ir,jr->ij", tensors["C"][index], tensors["A"], tensors["B"])


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def saved(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "adapter_model.safetensors")


# --- shared by the layers -------------------------------------------------------------------------------------------


def test_each_layer_reads_its_own_slice():
    model = toy(net(), "shared_cp", alpha=0.5)
    tensors = shared(model)
    h = array(X)
    for index, layer in enumerate(layers(model)):
        W = array(layer.base_layer.weight) + 0.5 * cp(tensors, index)
        h = np.tanh(h @ W.T + array(layer.base_layer.bias))
        np.testing.assert_allclose(array(layer.get_delta_weight("default")), 0.5 * cp(tensors, index), atol=1e-14)
    head = model.base_model.model.head
    np.testing.assert_allclose(array(model(X)), h @ array(head.weight).T + array(head.bias), atol=1e-12)


@pytest.mark.parametrize("backend", ["fused", "dense", "fft"])
def test_gradients_are_sums_over_the_layers(backend):
    model = toy(net(), "shared_cp", backend=backend)
    model(X).square().sum().backward()
    tensors = model.base_model.surm_shared["default"][0]
    A, B, C = (p.detach().clone().requires_grad_() for p in (tensors.A, tensors.B, tensors.C))
    h = X
    for layer, c in zip(layers(model), C, strict=True):
        h = torch.tanh(nn.functional.linear(h, layer.base_layer.weight + (A * c) @ B.mT, layer.base_layer.bias))
    head = model.base_model.model.head
    expected = torch.autograd.grad((h @ head.weight.mT + head.bias).square().sum(), [A, B, C])
    for parameter, gradient in zip((tensors.A, tensors.B, tensors.C), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-12)


def test_they_are_counted_and_saved_once_and_loaded(tmp_path):
    model = toy(net(), "shared_cp")
    assert model.get_nb_trainable_parameters()[0] == 2 * (12 + 12 + 2)
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    assert {name.rpartition(".")[2]: tensor.shape for name, tensor in saved(model, tmp_path).items()} == {
        "A": (12, 2),
        "B": (12, 2),
        "C": (2, 2),
    }
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert not any(p.is_meta for p in loaded.parameters())
        assert torch.equal(loaded(X), model(X))


def test_a_second_adapter_has_tensors_of_its_own():
    model = toy(net(), "shared_cp")
    first = model(X)
    model.add_adapter("other", SurmConfig(structure="shared_cp", target_modules=TWO, init_weights=False, **OPTIONS))
    flags = lambda: {n: p.requires_grad for n, p in model.base_model.surm_shared.named_parameters()}  # noqa: E731
    own = {n for n in flags() if n.startswith("default")}
    assert {n for n, trained in flags().items() if trained} == own
    assert torch.equal(model(X), first)
    model.set_adapter("other")
    assert {n for n, trained in flags().items() if trained} == flags().keys() - own
    np.testing.assert_allclose(
        array(layers(model)[1].get_delta_weight("other")), cp(shared(model, "other"), 1), atol=1e-14
    )
    with model.disable_adapter():
        torch.testing.assert_close(model(X), net()(X), rtol=0, atol=0)
    model.delete_adapter("other")
    assert list(model.base_model.surm_shared) == ["default"]
    assert all(flags().values())
    assert torch.equal(model(X), first)


def test_a_second_adapter_leaves_what_was_frozen_frozen():
    model = toy(net(), "shared_cp")
    tensors = model.base_model.surm_shared["default"][0]
    tensors.A.requires_grad_(False)
    config = SurmConfig(structure="circulant", target_modules=TWO)
    model.add_adapter("other", config)
    assert [p.requires_grad for p in (tensors.A, tensors.B)] == [False, True]
    with pytest.raises(ValueError, match="'A' is also that of a parameter"):
        model.add_adapter("A", config)
    assert [p.requires_grad for p in (tensors.A, tensors.B)] == [False, True]


def test_an_adapter_is_loaded_beside_another(tmp_path):
    model = toy(net(), "shared_cp")
    model.save_pretrained(tmp_path)
    other = toy(net(), "circulant", structure_options=None)
    other.load_adapter(tmp_path, "cp")
    other.set_adapter("cp")
    assert torch.equal(other(X), model(X))


def test_merging_reads_them():
    model = toy(net(), "shared_cp")
    expected = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert type(merged.first) is nn.Linear
    assert not [name for name, _ in merged.named_parameters() if "surm" in name]
    torch.testing.assert_close(merged(X), expected, rtol=0, atol=1e-12)


def test_copies_and_casts_stay_together():
    model = toy(net(), "shared_cp")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.base_model.surm_shared["default"][0].A.zero_()
    assert layers(twin)[0].get_delta_weight("default").norm() > 1
    assert layers(model)[0].get_delta_weight("default").norm() == 0
    twin.float()
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    assert twin(X.float()).dtype == torch.float32
    structure = layers(twin)[1].surm_update["default"]
    assert structure.shared is twin.base_model.surm_shared["default"][0]
    bfloat = toy(net().to(torch.bfloat16), "shared_cp")  # as PEFT trains adapters in float32
    assert {p.dtype for p in bfloat.base_model.surm_shared.parameters()} == {torch.float32}


def test_meta_construction_is_filled_by_a_load():
    model = toy(net(), "shared_cp")
    with torch.device("meta"):
        empty = toy(net(), "shared_cp")
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(X), model(X))
    with torch.device("meta"):
        empty = toy(net(), "shared_cp")
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty(X), model(X))


def test_parts_sums_and_patterns_each_have_an_index():
    model = adapt(
        tiny_vit(),
        structure="shared_cp",
        structure_pattern={r"blocks\.1\..*qkv": {"structure": "circulant+shared_cp", "structure_options": {"rank": 2}}},
        **OPTIONS,
    )
    (tensors,) = model.base_model.surm_shared["default"]
    assert [(site.layer, site.part, site.m, site.n) for site in tensors.sites] == [
        (f"blocks.{block}.attn.qkv", part, 192, 192) for block in (0, 1) for part in "qkv"
    ]


def test_the_adapter_form_shares_too():
    model = toy(net(), "shared_cp", form="adapter", adapter_activation="identity", adapter_bias=False)
    expected = array(layers(model)[0].base_layer(X))
    np.testing.assert_allclose(array(layers(model)[0](X)), expected + expected @ cp(shared(model), 0).T, atol=1e-12)


def test_a_failed_second_adapter_leaves_nothing():
    model = toy(net(), "shared_cp")
    with pytest.raises(ValueError, match="too many values"):
        model.add_adapter("other", SurmConfig(structure="shared_cp", target_modules=[*TWO, "head"], **OPTIONS))
    assert list(model.base_model.surm_shared) == ["default"]
    assert "other" not in layers(model)[0].surm_update


def test_refusals():
    config = SurmConfig(structure="shared_cp", target_modules=TWO, **OPTIONS)
    with pytest.raises(ValueError, match="belong to the PEFT model: adapt with"):
        inject_adapter_in_model(config, net())
    with pytest.raises(ValueError, match="reads tensors that a model's layers share"):
        build("shared_cp", 4, 4).dense()
    with pytest.raises(ValueError, match="takes no sum"):
        toy(net(), "shared_cp").add_weighted_adapter(["default"], [1.0], "sum")


def test_ddp_sums_the_gradients_once():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = toy(net(), "shared_cp")
        model(X).square().sum().backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        nn.parallel.DistributedDataParallel(model)(X).square().sum().backward()
        for name, gradient in expected.items():
            assert torch.equal(model.get_parameter(name).grad, gradient)
    finally:
        torch.distributed.destroy_process_group()


# --- frozen by a seed -----------------------------------------------------------------------------------------------


def drawn(m, n, width=3, seed=0):
    """U and V, drawn as documented."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, width, generator=generator), torch.randn(width, n, generator=generator)


def assert_drawn(structure):
    for tensor, expected in zip((structure.frozen.U, structure.frozen.V), drawn(structure.m, structure.n), strict=True):
        assert torch.equal(tensor.cpu(), expected)


def test_frozen_factors_are_neither_trained_nor_saved(tmp_path):
    model = toy(net(), "mini")
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 3 * 2
    assert {name.rpartition(".")[2] for name in saved(model, tmp_path)} == {"P", "Q"}
    U, V = map(array, drawn(12, 12))
    structure = layers(model)[0].surm_update["default"]
    np.testing.assert_allclose(array(structure.dense()), U @ array(structure.P) @ array(structure.Q) @ V, atol=1e-12)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(X), model(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_they_are_equal_for_every_dtype(dtype):
    structure = Mini(5, 7, dtype=dtype)
    assert_drawn(structure)
    assert_drawn(structure.to(torch.bfloat16).double())
    assert_drawn(copy.deepcopy(structure))
    assert not torch.equal(Mini(5, 7, seed=1).frozen.U, structure.frozen.U)


def test_they_are_there_after_meta_construction():
    with torch.device("meta"):
        made = Mini(5, 7)
    assert_drawn(made.to_empty(device="cpu"))
    assert_drawn(Mini(5, 7, device="meta").to_empty(device="cpu"))
    assert_drawn(Mini(5, 7).to("meta").to_empty(device="cpu"))
    lost = Mini(5, 7).to("meta")
    lost.load_state_dict(Mini(5, 7).state_dict(), assign=True)
    assert_drawn(lost)


def test_a_subclass_draws_otherwise():
    class Signs(Seeded):
        def draw(self, shape, generator):
            return torch.randint(2, shape, generator=generator) * 2.0 - 1

    assert set(Signs(0, {"S": (40,)}).double().S.tolist()) == {-1.0, 1.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_they_are_equal_on_a_gpu():
    assert_drawn(Mini(64, 48).cuda())
    assert_drawn(Mini(64, 48, device="cuda"))


# --- made from the weight -------------------------------------------------------------------------------------------


def assert_singular(structure, weight):
    """U and V span the leading singular vectors: of the weight's product with them, the singular values are left."""
    U, V = array(structure.U), array(structure.V)
    core = U.T @ array(weight) @ V.T
    np.testing.assert_allclose(core, np.diag(np.linalg.svd(array(weight), compute_uv=False)[:2]), atol=1e-5)
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-5)


def test_a_structure_sees_the_weight_when_it_is_attached(tmp_path):
    model = toy(net(), "singular")
    for layer in layers(model):
        assert_singular(layer.surm_update["default"], layer.base_layer.weight)
    assert {name.rpartition(".")[2] for name in saved(model, tmp_path)} == {"R"}
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=1e-12)


def test_a_part_of_a_fused_projection_sees_its_rows():
    layer = adapt(tiny_vit(), structure="singular", **OPTIONS).base_model.model.blocks[0].attn.qkv
    for part, rows in zip("qkv", layer.base_layer.weight.split(192), strict=True):
        assert_singular(getattr(layer, f"surm_{part}")["default"], rows)


def test_a_quantised_weight_is_seen_dequantised(monkeypatch):
    class Backend:
        def get_base_weight(self, base):
            return base.weight.detach() * 3

        layer_type = "linear"

    monkeypatch.setattr("surm.tuners.model.weight_layer", lambda base, model: (SurmLinear, Backend()))
    model = toy(net(), "singular")
    assert_singular(layers(model)[0].surm_update["default"], 3 * net().first.weight)


def test_on_meta_it_sees_the_weight_when_that_is_loaded():
    model = toy(net(), "singular")
    for assign in (True, False):
        with torch.device("meta"):
            empty = toy(net(), "singular")
        with pytest.raises(ValueError, match="singular is made from the weight that it updates, which has no storage"):
            layers(empty)[0].surm_update["default"].dense()
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(model.state_dict(), assign=assign)
        torch.testing.assert_close(empty(X), model(X), rtol=0, atol=1e-12)


def test_on_meta_attach_weights_is_for_other_loads():
    with torch.device("meta"):
        empty = toy(net(), "singular")
    for parameter in list(empty.parameters()):
        assert parameter.is_meta
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for layer, twin in zip(layers(empty), (net().first, net().second), strict=True):
            layer.base_layer.weight.copy_(twin.weight)
    empty.base_model.attach_weights()
    assert_singular(layers(empty)[1].surm_update["default"], net().second.weight)


def test_the_adapter_form_has_no_weight():
    with pytest.raises(ValueError, match="form='adapter' has none"):
        SurmConfig(structure="singular", form="adapter")


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [toy.name for toy in TOYS])
def test_transformers_models_train_save_and_load(structure, tmp_path):
    torch.manual_seed(0)
    model = adapt(tiny_bert(), structure=structure, init_weights=False, task_type="SEQ_CLS", **OPTIONS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = state(model)
    model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in state(model).items())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits)
