"""docs/peft.md: its Python runs, its table is that of the fields, and what it says is refused is refused."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import LlamaForCausalLM

from surm import SurmConfig

convert_to_lora = pytest.importorskip("peft.tuners.lora.conversion", reason="this peft has no conversion to LoRA")
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/peft.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_its_python_does_what_its_comments_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, settings, several, conversion = BLOCKS
    assert first.startswith("import surm")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(first, names)
    assert "trainable params: 768 " in capsys.readouterr().out
    trained, loaded = ({n: p for n, p in names[m].named_parameters() if "surm" in n} for m in ("model", "loaded"))
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)

    patterned = get_peft_model(LlamaForCausalLM(names["settings"]), eval(settings, names))
    kinds = {n: type(m.surm_update["default"]).__name__ for n, m in patterned.named_modules() if hasattr(m, "alpha")}
    assert sorted(kinds.values()) == ["Circulant"] * 11 + ["Kronecker"] * 2 + ["LowDisplacementRank"]
    assert kinds["base_model.model.model.layers.0.self_attn.q_proj"] == "LowDisplacementRank"

    model, ids = names["model"].eval(), names["ids"]
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    weight, update = layer.base_layer.weight.clone(), layer.get_delta_weight("default")
    own = model(input_ids=ids).logits
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    assert not torch.allclose(own, base, atol=1e-3)
    exec(several, names)
    torch.testing.assert_close(names["logits"], torch.cat([own[:1], base[1:]]))  # the two new ones are zero yet
    assert max(names["errors"].values()) < 1e-6
    torch.testing.assert_close(names["merged"].model.layers[1].self_attn.v_proj.weight, weight + 0.7 * update)

    exec(conversion, names)
    errors = eval(capsys.readouterr().out.splitlines()[-1])
    assert list(errors) == [1, 8, 64]
    assert 1 > errors[1] > errors[8] > errors[64]
    assert errors[64] < 1e-6
    assert isinstance(names["lora_config"], LoraConfig)


def test_its_table_is_that_of_the_fields():
    usual = {field.name for field in fields(PeftConfig)}
    own = [field for field in fields(SurmConfig) if field.name not in usual]
    expected = [f"| `{field.name}` | `{field.default!r}` | {field.metadata['help']} |" for field in own]
    assert re.findall(r"^\| `.*` \| `.*` \| .* \|$", TEXT, flags=re.MULTILINE) == expected


def test_every_file_it_names_exists():
    assert all((ROOT / "docs" / name).exists() for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))


# --- limits -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.recurrent, self.transposed = nn.GRU(8, 8), nn.ConvTranspose2d(1, 1, 2)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.block(x))


def adapted(target: str = "linear", **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(Net(), SurmConfig(target_modules=[target], init_weights=False, **settings))


def swap(folder: Path) -> None:
    model = adapted()
    model.save_pretrained(folder)
    hotswap_adapter(model, folder, "default")


def merged_batch() -> None:
    model = adapted().eval()
    model.merge_adapter()
    model(torch.ones(1, 1, 8), adapter_names=["default"])


def rescale() -> None:
    with rescale_adapter_scale(adapted(), 0.5):
        pass


REFUSED = {
    "r": (lambda _: SurmConfig(r=8), "r=8 is an option of LoRA .*: give the size in structure_options"),
    "lora_alpha": (lambda _: SurmConfig(lora_alpha=8), "lora_alpha=8 is an option of LoRA .*: give alpha"),
    "DoRA": (lambda _: SurmConfig(use_dora=True), "use_dora=True is an option of LoRA .*use LoraConfig"),
    "parameters": (lambda _: SurmConfig(target_parameters=["w"]), "target_parameters=.* name linear layers in target"),
    "replication": (lambda _: SurmConfig(layer_replication=[(0, 2)]), "layer_replication=.* is an option of LoRA"),
    "PiSSA": (lambda _: SurmConfig(init_weights="pissa"), "init_weights='pissa' is not known: give True, False"),
    "attention": (lambda _: adapted("attention"), "Target module attention of type MultiheadAttention is not"),
    "its output": (lambda _: adapted("attention.out_proj"), "out_proj.*MultiheadAttention"),
    "fast path": (lambda _: adapted("block.linear1"), r"linear1.*set_fastpath_enabled\(False\)"),
    "recurrent": (lambda _: adapted("recurrent"), "Target module recurrent of type GRU is not supported"),
    "transposed": (lambda _: adapted("transposed"), "transposed of type ConvTranspose2d is not supported"),
    "merge": (lambda _: adapted(form="adapter").merge_adapter(), "form='adapter' cannot be merged"),
    "merge and unload": (lambda _: adapted(form="adapter").merge_and_unload(), "form='adapter' cannot be merged"),
    "weighted sum": (
        lambda _: adapted(form="adapter").add_weighted_adapter(["default"], [1.0], "sum"),
        "Adapter default is of form='adapter'.*give adapters of form='weight'",
    ),
    "conversion": (lambda _: convert_to_lora.convert_to_lora(adapted(form="adapter"), 4), "SurmAdapter"),
    "both forms": (
        lambda _: adapted().add_adapter("b", SurmConfig(target_modules=["linear"], form="adapter")),
        "Target module linear: it has an adapter of form='weight', and a module takes one form",
    ),
    "methods": (lambda _: adapted().add_adapter("b", LoraConfig(target_modules=["linear"])), "Cannot combine adapters"),
    "mixed methods": (
        lambda _: get_peft_model(Net(), SurmConfig(target_modules=["linear"]), mixed=True),
        "'SURM' is not compatible with the `PeftMixedModel`",
    ),
    "hot swapping": (swap, "Hotswapping only supports LORA"),
    "scaling": (lambda _: rescale(), "scaling is only supported for models with `LoraLayer`s"),
    "training batch": (
        lambda _: adapted()(torch.ones(1, 1, 8), adapter_names=["default"]),
        "Cannot pass `adapter_names` when the model is in training mode",
    ),
    "merged batch": (lambda _: merged_batch(), "Cannot pass `adapter_names` when there are merged adapters"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_its_limits_are_refused_in_one_sentence(what, tmp_path):
    attempt, sentence = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        attempt(tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_fast_path_an_adapter_inside_a_torch_layer_counts():
    x = torch.linspace(-1, 1, 24).reshape(1, 3, 8)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model = adapted("block.linear1").eval()
        with torch.no_grad():
            output = model(x)
            with model.disable_adapter():
                assert (model(x) - output).abs().max() > 1e-3
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
