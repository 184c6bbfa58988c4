"""MELoRA, LoRA-Mini and LoRA-XS on models, by PEFT."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

from surm import SurmConfig
from surm.tuners import SurmLinear
from tests.tuners.helpers import IDS, TWO, X, adapt, net, tiny_bert, tiny_vit

SYSTEMS = {  # with the rank of an update
    "block_low_rank": ({"blocks": 4, "rank": 2}, 8),
    "lora_mini": ({"rank": 3, "outer": [6, 5]}, 3),
    "lora_xs": ({"rank": 4}, 4),
}
systems = pytest.mark.parametrize(("structure", "options", "rank"), [(name, *row) for name, row in SYSTEMS.items()])


def layers(model):
    return model.base_model.model.first, model.base_model.model.second


def system(model, structure, **settings):
    options, _ = SYSTEMS[structure]
    settings = {"structure_options": options, "init_weights": False, "target_modules": TWO} | settings
    return adapt(model, structure=structure, **settings)


def keys(folder):
    return {name.rpartition(".")[2] for name in load_file(folder / "adapter_model.safetensors")}


@systems
def test_trained_saved_loaded_merged_converted(structure, options, rank, tmp_path):
    torch.manual_seed(0)
    model = adapt(tiny_bert(), structure=structure, structure_options=options, task_type="SEQ_CLS", alpha=2.0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(3):
        model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = model.eval()(IDS).logits
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-6)
    with model.disable_adapter():
        assert (model(IDS).logits - expected).abs().max() > 1e-3
    delta = next(layer for layer in model.modules() if isinstance(layer, SurmLinear)).get_delta_weight("default")
    assert np.linalg.matrix_rank(delta.double().numpy(), tol=1e-6) == rank
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(IDS).logits, expected, rtol=0, atol=1e-5)
    conversion = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")
    config, state = conversion.convert_to_lora(model, rank=rank)
    lora = PeftModel(tiny_bert(), config).eval()
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(lora(IDS).logits, expected, rtol=0, atol=1e-5)


@systems
def test_two_adapters_and_a_collapse(structure, options, rank):
    model = system(net(), structure)
    first = model(X)
    model.add_adapter("other", SurmConfig(structure=structure, structure_options=options, target_modules=TWO))
    model.set_adapter("other")
    torch.testing.assert_close(model(X), net()(X))
    model.set_adapter("default")
    assert torch.equal(model(X), first)
    if structure == "block_low_rank":
        return
    model.base_model.collapse("default")
    torch.testing.assert_close(model(X), first)
    assert model.peft_config["default"].structure == "low_rank"
    with pytest.raises(ValueError, match="takes no sum, as more than its parameters makes it"):
        model.base_model.add_weighted_adapter(["other"], [1.0], "sum")


# --- LoRA-Mini --------------------------------------------------------------------------------------------------------


def test_each_layer_has_outer_factors_of_its_own_and_the_same_after_a_load(tmp_path):
    model = system(net(), "lora_mini")
    first, second = (layer.surm_update["default"].frozen for layer in layers(model))
    assert not torch.equal(first.A_aux, second.A_aux)
    model.save_pretrained(tmp_path)
    assert keys(tmp_path) == {"A", "B"}
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    for layer, frozen in zip(layers(loaded), (first, second), strict=True):
        assert torch.equal(layer.surm_update["default"].frozen.A_aux, frozen.A_aux)
    with torch.device("meta"):
        empty = system(net(), "lora_mini")
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(X), model(X))


def test_outer_sizes_that_do_not_fit_a_layer_are_refused():
    with pytest.raises(ValueError, match=r"Target module first: lora_mini: outer=\[13, 5\] is not possible for a 12 x"):
        system(net(), "lora_mini", structure_options={"outer": [13, 5]})
    with pytest.raises(ValueError, match="init_weights='authors' cannot train"):
        SurmConfig(structure="circulant+lora_mini", init_weights="authors")


def test_blocks_that_do_not_divide_a_layer_are_refused():
    with pytest.raises(ValueError, match=r"Target module first: block_low_rank: blocks=8 does not divide both sizes"):
        system(net(), "block_low_rank", structure_options={"blocks": 8})


# --- LoRA-XS ----------------------------------------------------------------------------------------------------------


def assert_best_rank_four(structure, weight):
    """B A is the truncated singular value decomposition of the weight, by NumPy."""
    U, S, Vh = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    np.testing.assert_allclose((structure.B @ structure.A).detach(), (U[:, :4] * S[:4]) @ Vh[:4], atol=1e-6)


def test_parts_of_a_fused_projection_and_quantised_weights(monkeypatch):
    vit = adapt(tiny_vit(), structure="lora_xs", structure_options={"rank": 4})
    layer = vit.base_model.model.blocks[0].attn.qkv
    for part, rows in zip("qkv", layer.base_layer.weight.split(192), strict=True):
        assert_best_rank_four(getattr(layer, f"surm_{part}")["default"], rows)

    class Backend:
        layer_type = "linear"

        def get_base_weight(self, base):
            return base.weight.detach() * 3

    monkeypatch.setattr("surm.tuners.model.weight_layer", lambda base, model: (SurmLinear, Backend()))
    model = system(net(), "lora_xs")
    assert_best_rank_four(layers(model)[0].surm_update["default"], 3 * net().first.weight)


@pytest.mark.parametrize("save_bases", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_meta_weights(save_bases, assign):
    options = {"structure_options": {"rank": 4, "save_bases": save_bases}}
    model = system(net(), "lora_xs", **options)
    with torch.device("meta"):
        empty = system(net(), "lora_xs", **options)
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict(), assign=assign)
    torch.testing.assert_close(empty(X), model(X), rtol=0, atol=1e-12)


def test_saved_bases_are_those_of_the_weight_that_was_adapted(tmp_path):
    for save_bases in (True, False):
        folder = tmp_path / str(save_bases)
        model = system(net(), "lora_xs", structure_options={"rank": 4, "save_bases": save_bases})
        delta = layers(model)[0].get_delta_weight("default")
        model.save_pretrained(folder)
        assert keys(folder) == ({"R", "B", "A"} if save_bases else {"R"})
        other = net()
        other.first.weight.data.neg_()
        loaded = layers(PeftModel.from_pretrained(other, folder))[0].get_delta_weight("default")
        torch.testing.assert_close(loaded, delta if save_bases else -delta)


def test_a_merged_weight_is_refused():
    model = adapt(net(), target_modules=TWO)
    model.merge_adapter()
    config = SurmConfig(structure="lora_xs", target_modules=TWO)
    with pytest.raises(ValueError, match="cannot be added while 'default' is merged into the weight: call unmerge"):
        model.add_adapter("other", config)
    model.unmerge_adapter()
    model.add_adapter("other", config)
