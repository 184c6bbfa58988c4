"""Aurora and LoRTA: one decomposition for the matrices of many layers."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaModel

from surm import SurmConfig
from tests.tuners.helpers import IDS, adapt, tiny_bert, tiny_vit

D, LAYERS, KINDS = 4, 2, 2


class Blocks(nn.Module):
    """Two blocks of two layers of width 4, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(D, D) for name in ("first", "second")}) for _ in range(LAYERS)
        )
        self.double()

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block["second"](torch.tanh(block["first"](x))))
        return x


X = torch.linspace(-1, 1, 6 * D, dtype=torch.float64).reshape(6, D)
TARGETS = ["first", "second"]
LORTA = {"structure": "lorta", "structure_options": {"rank": 2, "num_heads": 2, "heads": "output"}}
CASES = {
    "aurora": {"structure": "aurora", "structure_options": {"rank": 2}},
    "aurora with a core": {"structure": "aurora", "structure_options": {"rank": 2, "core": True}},
    "lorta": LORTA,
    "lorta on inputs": {"structure": "lorta", "structure_options": LORTA["structure_options"] | {"heads": "input"}},
}
cases = pytest.mark.parametrize("case", CASES)
ONE = ["aurora", "lorta on inputs"]


def blocks():
    torch.manual_seed(0)
    return Blocks()


def cp(case, **settings):
    return adapt(
        blocks(), **{"target_modules": TARGETS, "init_weights": False, "alpha": 0.5, **CASES[case], **settings}
    )


def layers(model):
    return [layer for block in model.base_model.model.blocks for layer in block.values()]


def tensors(model, adapter="default"):
    return model.base_model.surm_shared[adapter][0]


def factors(model, adapter="default"):
    return dict(tensors(model, adapter).named_parameters())


def fill(model, **values):
    with torch.no_grad():
        for name, value in values.items():
            factors(model)[name].copy_(torch.as_tensor(value, dtype=torch.float64))


def dense(case, f):
    """The updates of all matrices in order, of the factors: one einsum over the whole tensor."""
    if case == "aurora":
        return torch.einsum("di,i,ki,ie->kde", f["V"], f["gain"], f["P"], f["U"])
    if case == "aurora with a core":
        return torch.einsum("dj,ijs,ks,ie->kde", f["V"], f["core"], f["P"], f["U"])
    names = "A", "B", "C_h", "C_l", "C_m"
    updates = torch.einsum("dr,ri,hr,lr,mr->lmdhi", *(f[name] for name in names)).reshape(-1, D, D)
    return updates if case == "lorta on inputs" else updates.mT


def update(layer, adapter="default"):
    return layer.get_delta_weight(adapter)


# --- the formula ----------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("backend", ["auto", "fused", "dense", "fft"])
def test_outputs_and_gradients_are_those_of_the_dense_tensor(case, backend):
    model = cp(case, backend=backend)
    twins = {name: p.detach().clone().requires_grad_() for name, p in factors(model).items()}
    h = X
    for layer, W in zip(layers(model), 0.5 * dense(case, twins), strict=True):
        torch.testing.assert_close(update(layer), W, rtol=0, atol=1e-12)
        h = torch.tanh(nn.functional.linear(h, layer.base_layer.weight + W, layer.base_layer.bias))
    y = model(X)
    torch.testing.assert_close(y, h, rtol=0, atol=1e-12)
    expected = torch.autograd.grad(h.square().sum(), list(twins.values()))
    y.square().sum().backward()
    for name, gradient in zip(twins, expected, strict=True):
        torch.testing.assert_close(factors(model)[name].grad, gradient, rtol=1e-10, atol=1e-12)


def test_the_worked_example_of_lorta():
    whole = {"A": [[1, 0], [0, 1], [1, 1], [2, 0]], "B": [[1, 2], [0, 1]]}
    weights = {"C_h": [[1, 1], [2, 0]], "C_l": [[1, 2], [3, 1]], "C_m": [[1, 0], [1, 1]]}
    expected = {0: [[1, 2, 2, 4], [0, 0, 0, 0], [1, 2, 2, 4], [2, 4, 4, 8]]}
    expected[3] = [[3, 6, 6, 12], [0, 1, 0, 0], [3, 7, 6, 12], [6, 12, 12, 24]]
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    for case, y in (("lorta on inputs", [81, 2, 83, 162]), ("lorta", [36, 77, 72, 144])):
        model = cp(case, alpha=1.0)
        fill(model, **whole, **weights)
        updates = [update(layer) if case == "lorta on inputs" else update(layer).mT for layer in layers(model)]
        for index, W in expected.items():
            assert updates[index].tolist() == W
        assert np.linalg.matrix_rank(torch.cat(updates, dim=1)) == np.linalg.matrix_rank(torch.cat(updates)) == 2
        assert layers(model)[3].surm_update["default"](x).tolist() == y


@pytest.mark.parametrize("core", [False, True])
def test_the_worked_example_of_aurora(core):
    model = adapt(
        nn.Sequential(nn.Linear(3, 3).double()),
        structure="aurora",
        structure_options={"rank": 2, "core": core},
        target_modules=["0"],
    )
    middle = {"core": [[[2, 0], [0, 0]], [[0, 0], [0, 3]]]} if core else {"gain": [2, 3]}
    fill(model, U=[[1, 0, 1], [0, 1, 1]], V=[[1, 2], [0, 1], [1, 1]], P=[[1, -1]], **middle)
    assert update(model.base_model.model[0]).tolist() == [[2, -6, -4], [0, -3, -3], [2, -3, -1]]


def test_lorta_is_a_case_of_aurora():
    lorta, aurora = cp("lorta on inputs"), cp("aurora")
    f = factors(lorta)
    Z = torch.cat([f["B"] * row[:, None] for row in f["C_h"]], dim=1)
    P = torch.stack([layer * kind for layer in f["C_l"] for kind in f["C_m"]])
    fill(aurora, V=f["A"].tolist(), U=Z.tolist(), P=P.tolist(), gain=[1, 1])
    for one, other in zip(layers(lorta), layers(aurora), strict=True):
        torch.testing.assert_close(update(one), update(other), rtol=0, atol=1e-14)


@cases
def test_all_updates_share_an_output_and_an_input_space(case):
    updates = [update(layer).detach() for layer in layers(cp(case))]
    for dim in (0, 1):
        assert np.linalg.matrix_rank(torch.cat(updates, dim=dim)) == 2


def test_with_identities_beside_it_auroras_middle_is_a_diagonal():
    model = cp("aurora", structure_options={"rank": D}, alpha=1.0)
    fill(model, V=np.eye(D), U=np.eye(D), gain=[1, 2, 3, 4])
    for layer, p in zip(layers(model), factors(model)["P"], strict=True):
        assert torch.equal(update(layer), torch.diag(p * torch.arange(1, D + 1)))


def test_a_factor_moves_between_lortas_tensors_without_changing_the_updates():
    model = cp("lorta")
    before = [update(layer) for layer in layers(model)]
    with torch.no_grad():
        factors(model)["A"][:, 1] *= 3
        factors(model)["C_l"][:, 1] /= 3
    for layer, W in zip(layers(model), before, strict=True):
        torch.testing.assert_close(update(layer), W, rtol=0, atol=1e-12)


@cases
@pytest.mark.parametrize("init_weights", [True, "authors"])
def test_the_start_is_zero_and_one_factor_has_a_gradient(case, init_weights):
    model = cp(case, init_weights=init_weights)
    assert torch.equal(model(X), blocks()(X))
    model(X).sum().backward()
    moved = {name for name, p in factors(model).items() if p.grad.any()}
    assert moved == {"V" if "aurora" in case else "B"}


def test_the_starts_of_the_other_factors():
    model = adapt(tiny_bert(), structure="lorta", structure_options={"rank": 6})
    bounds = {"A": 6**-0.5, "C_h": 1.0, "C_l": 1.0, "C_m": 1.0}  # 1 / sqrt(rank), sqrt(6 / rank)
    for name, bound in bounds.items():
        assert 0.7 * bound < factors(model)[name].abs().max() <= bound
    model = adapt(tiny_bert(), structure="aurora", structure_options={"rank": 23, "core": True})
    bounds = {"U": 24**-0.5, "P": 0.5, "core": (6 / (2 * 23**2)) ** 0.5}  # Xavier: sqrt(6 / (fan_in + fan_out))
    for name, bound in bounds.items():
        assert 0.9 * bound < factors(model)[name].abs().max() <= bound


# --- a model --------------------------------------------------------------------------------------------------------


@cases
def test_they_are_counted_and_saved_once_loaded_merged_and_converted(case, tmp_path):
    model = cp(case)
    expected = model(X)
    count = {"aurora": 2 * (4 + 4 + 1 + 4), "aurora with a core": 2 * (4 + 4 + 4) + 8}.get(
        case, 2 * (4 + 2 + 2 + 2 + 2)
    )
    assert model.get_nb_trainable_parameters()[0] == count
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == count
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(blocks(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(X), expected)
    conversion = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")
    lora, state = conversion.convert_to_lora(model, rank=2)
    assert lora.r == 2
    for layer in layers(model):
        [name] = [name for name, module in model.named_modules() if module is layer]
        B, A = (next(t for key, t in state.items() if f"{name}.lora_{letter}" in key) for letter in "BA")
        torch.testing.assert_close((B @ A).double(), update(layer), rtol=0, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-12)
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(X), expected, rtol=0, atol=1e-12)
    assert not [name for name, _ in merged.named_parameters() if "surm" in name]


@pytest.mark.parametrize("case", ONE)
def test_several_adapters(case):
    model = cp(case)
    first = model(X)
    model.add_adapter("other", SurmConfig(target_modules=["first"], init_weights=False, **CASES[case]))
    assert torch.equal(model(X), first)
    model.set_adapter("other")
    only = {name: p.requires_grad for name, p in model.named_parameters() if "surm_" in name}
    assert all(trained == (".other." in name) for name, trained in only.items())
    with model.disable_adapter():
        assert torch.equal(model(X), blocks()(X))
    other = model(X)
    rows = torch.cat([first[:1], other[:1], blocks()(X)[:1]])
    mixed = model.eval()(X[:1].expand(3, -1), adapter_names=["default", "other", "__base__"])
    torch.testing.assert_close(mixed, rows, rtol=0, atol=1e-12)
    model.delete_adapter("other")
    assert list(model.base_model.surm_shared) == ["default"]
    torch.testing.assert_close(model(X), first, rtol=0, atol=0)


@pytest.mark.parametrize("case", ONE)
def test_copies_casts_and_meta_construction(case):
    model = cp(case)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for factor in factors(model).values():
            factor.zero_()
    assert update(layers(twin)[3]).norm() > 0 == update(layers(model)[3]).norm()
    with torch.device("meta"):
        empty = cp(case)
    empty.load_state_dict(twin.state_dict(), assign=True)
    assert torch.equal(empty(X), twin(X))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        cast = copy.deepcopy(twin).to(dtype)
        assert cast(X.to(dtype)).dtype == dtype
        torch.testing.assert_close(cast(X.to(dtype)).double(), twin(X), rtol=0, atol=tolerance)


def test_an_attention_cuts_outputs_of_queries_and_inputs_of_its_output():
    """By the tables of models, with the number of heads from the model."""
    targets = ["query", "key", "value", "attention.output.dense"]
    model = adapt(
        tiny_bert(), structure="lorta", structure_options={"rank": 2}, target_modules=targets, init_weights=False
    )
    f, block = factors(model), model.base_model.model.bert.encoder.layer[1].attention
    Z = (f["C_h"][:, :, None] * f["B"]).transpose(0, 1).flatten(1)
    for kind, layer in enumerate([block.self.query, block.self.key, block.self.value, block.output.dense]):
        c = f["C_l"][1] * f["C_m"][kind]
        W = (Z.mT * c) @ f["A"].mT if kind < 3 else (f["A"] * c) @ Z
        torch.testing.assert_close(update(layer), W)


def test_parts_of_a_fused_projection_are_kinds():
    model = adapt(tiny_vit(), structure="lorta", structure_options={"rank": 2}, fused_parts=["q", "v"])
    shapes = {name: tuple(p.shape) for name, p in factors(model).items()}
    assert shapes == {"B": (2, 64), "A": (192, 2), "C_h": (3, 2), "C_l": (2, 2), "C_m": (2, 2)}
    assert (tensors(model).layers, tensors(model).kinds) == ([0, 0, 1, 1], [0, 1, 0, 1])


@pytest.mark.parametrize("structure", ["aurora", "lorta"])
def test_gradient_checkpointing_gives_the_same_gradients(structure):
    gradients = []
    for checkpointing in (False, True):
        model = adapt(tiny_bert(), structure=structure, structure_options={"rank": 2}, init_weights=False).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        torch.manual_seed(2)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
        gradients.append([p.grad for p in factors(model).values()])
    torch.testing.assert_close(*gradients)


def bert(width, layers):
    heads, inner = 12, 4 * width
    with torch.device("meta"):
        config = BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner
        )
        return BertForSequenceClassification(config)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("width", "depth", "structure", "options", "targets", "expected"),
    [
        (768, 12, "lorta", {"rank": 4}, "qkvo", 3_440),
        (768, 12, "lorta", {"rank": 43}, "qv", 36_894),
        (768, 12, "lorta", {"rank": 64}, "qkv", 54_976),
        (768, 12, "aurora", {"rank": 23}, "qv", 35_903),
        (768, 12, "aurora", {"rank": 35}, "qkv", 55_055),
        (768, 12, "aurora", {"rank": 16, "core": True}, "qv", 29_056),
        (384, 6, "lorta", {"rank": 31}, "qkv", 13_547),
        (384, 6, "lorta", {"rank": 21}, "qv", 9_156),
        (384, 6, "aurora", {"rank": 17}, "qkv", 13_379),
        (384, 6, "aurora", {"rank": 12}, "qv", 9_372),
    ],
)
def test_counts_at_bert_base_and_minilm(width, depth, structure, options, targets, expected):
    names = {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"}
    config = {"structure": structure, "structure_options": options, "target_modules": [names[t] for t in targets]}
    with torch.device("meta"):
        assert adapt(bert(width, depth), **config).get_nb_trainable_parameters()[0] == expected


# --- what is kept and what is refused -------------------------------------------------------------------------------


def test_a_saved_adapter_keeps_its_order_in_a_model_that_has_another():
    class Turned(Blocks):
        """The same layers, listed the other way."""

        def named_modules(self, *args, **kwargs):
            yield from reversed(list(super().named_modules(*args, **kwargs)))

    model = cp("aurora")
    config = copy.deepcopy(model.peft_config["default"])
    assert config.shared_order == [f"blocks.{block}.{name}.update" for block in range(2) for name in TARGETS]
    config.was_read, config.inference_mode = True, False
    torch.manual_seed(0)
    turned = Turned()
    other = PeftModel(turned, config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))
    config.shared_order = [*config.shared_order[:-1], "blocks.1.third.update"]
    with pytest.raises(ValueError, match=r"among other layers than this model's: blocks.1.second.update is in one"):
        PeftModel(blocks(), config)


def test_refusals():
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    for structure in ("aurora", "lorta"):
        words = rf"{structure} shares .*q_proj \(update\) is 16 x 16, .*k_proj \(update\) 8 x 16: .* grouped-query"
        with pytest.raises(ValueError, match=words):
            adapt(LlamaModel(config), structure=structure, target_modules=["q_proj", "k_proj"])
    adapt(LlamaModel(config), structure="lorta", target_modules=["q_proj", "o_proj"])
    with pytest.raises(ValueError, match=r"first is not known as a projection .* give heads='output' or 'input'"):
        adapt(blocks(), structure="lorta", target_modules=TARGETS)
    with pytest.raises(ValueError, match="does not tell one number of heads: give num_heads"):
        adapt(blocks(), structure="lorta", structure_options={"heads": "input"}, target_modules=TARGETS)
    options = {"heads": "input", "num_heads": 3}
    with pytest.raises(ValueError, match="3 heads do not divide the width 4"):
        adapt(blocks(), structure="lorta", structure_options=options, target_modules=TARGETS)
