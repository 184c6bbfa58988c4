import os
import subprocess
import sys

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    ViTConfig,
)

from surm import SurmConfig
from surm.models import split_fused_projections
from surm.tuners import SurmLinear
from surm.tuners.saving import OLD_PEFT
from surm.tuners.targets import projection_names
from tests.tools.skips import needs_peft_021
from tests.tuners.helpers import TWO, X, adapt, net, tiny_bert, tiny_vit

STRUCTURES_OF_THE_PAPER = ["circulant", "toeplitz", "kronecker", "ldr"]
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(12).reshape(2, 6)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapted_layers(model):
    return sorted(name for name, module in model.base_model.model.named_modules() if isinstance(module, SurmLinear))


# --- counts stated in the paper ---------------------------------------------------------------------------------------


def base_sized(backbone):
    with torch.device("meta"):
        if backbone == "bert":
            return BertModel(BertConfig())
        return timm.create_model("vit_base_patch16_224", pretrained=False)


@pytest.mark.parametrize("backbone", ["vit", "bert"])
@pytest.mark.parametrize("structure", STRUCTURES_OF_THE_PAPER)
def test_a_base_sized_model_trains_55296_parameters_on_qkv_and_36864_on_qv(backbone, structure):
    assert trainable(adapt(base_sized(backbone), structure=structure)) == 55_296
    model = base_sized(backbone)
    targets = projection_names(model, ["q", "v"])
    assert trainable(adapt(model, structure=structure, target_modules=targets, fused_parts=["q", "v"])) == 36_864


# --- which layers -----------------------------------------------------------------------------------------------------


def endings(stem, names=("q_proj", "k_proj", "v_proj")):
    return {f"{stem}.{name}" for name in names}


BERT = ("query", "key", "value")


@pytest.mark.parametrize(
    ("model", "layers", "blocks"),
    [
        (lambda: AutoModel.from_config(BertConfig(**TINY)), endings("self", BERT), 2),
        (lambda: AutoModel.from_config(RobertaConfig(**TINY)), endings("self", BERT), 2),
        (lambda: AutoModel.from_config(ViTConfig(**TINY)), endings("attention"), 2),
        (lambda: AutoModel.from_config(Dinov2Config(**TINY)), endings("attention"), 2),
        (lambda: CLIPTextModel(CLIPTextConfig(**TINY)), endings("self_attn"), 2),
        (lambda: CLIPVisionModel(CLIPVisionConfig(**TINY)), endings("self_attn"), 2),
        (lambda: CLIPModel(CLIPConfig(text_config=TINY, vision_config=TINY)), endings("self_attn"), 4),
        (tiny_vit, endings("attn", ["qkv"]), 2),
        (lambda: split_fused_projections(tiny_vit()), endings("qkv"), 2),
    ],
    ids=["bert", "roberta", "vit", "dinov2", "clip text", "clip vision", "clip", "timm", "timm, split"],
)
def test_by_default_query_key_and_value_of_every_block_are_adapted_and_nothing_else(model, layers, blocks):
    found = adapted_layers(adapt(model()))
    assert {".".join(name.split(".")[-2:]) for name in found} == layers
    assert len(found) == blocks * len(layers)


class OldAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.query, self.attention.key, self.attention.value = (nn.Linear(4, 4) for _ in range(3))
        self.output = nn.Linear(4, 4)


def test_the_names_of_older_transformers_are_known():
    model = nn.Module()
    model.config = ViTConfig(**TINY)
    model.layer = nn.ModuleList([nn.Module()])
    model.layer[0].attention = OldAttention()
    assert adapted_layers(adapt(model)) == sorted(f"layer.0.attention.attention.{name}" for name in BERT)


def test_a_model_without_known_layers_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"Net of model type 'custom' has no layers called attn\.k_proj"):
        adapt(net())


def test_other_layers_than_linear_are_refused_by_name_and_type():
    with pytest.raises(TypeError, match="Target module norm of type LayerNorm is not supported"):
        adapt(tiny_vit(), target_modules="norm")


def test_options_that_do_not_fit_a_layer_are_refused_with_its_name():
    with pytest.raises(ValueError, match=r"Target module first: kronecker.*does not divide") as error:
        adapt(net(), structure="kronecker", structure_options={"factor_shape": [5, 7]}, target_modules=["first"])
    assert "\n" not in str(error.value)


def test_blocks_can_be_selected():
    model = adapt(tiny_bert(), target_modules=["query"], layers_to_transform=0)
    assert adapted_layers(model) == ["bert.encoder.layer.0.attention.self.query"]
    model = adapt(tiny_bert(), exclude_modules=".*layer.1.*")
    assert {name.split(".")[3] for name in adapted_layers(model)} == {"0"}


@needs_peft_021
def test_blocks_can_be_selected_in_a_list_at_the_top():
    assert adapted_layers(adapt(tiny_vit(), layers_to_transform=[1], layers_pattern="blocks")) == ["blocks.1.attn.qkv"]


def test_all_linear_leaves_the_classifier():
    model = adapt(tiny_bert(), target_modules="all-linear", task_type="SEQ_CLS")
    assert len(adapted_layers(model)) == 2 * 6 + 1
    assert "classifier" not in adapted_layers(model)


# --- biases, further modules, several adapters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "extra"),
    [
        ("none", 0),
        pytest.param("surm_only", 2 * 3 * 24, marks=needs_peft_021),
        pytest.param("all", 1, marks=needs_peft_021),
    ],
)
def test_biases_are_trained_as_asked(bias, extra):
    base = tiny_bert()
    if extra == 1:
        extra = sum(p.numel() for name, p in base.named_parameters() if name.endswith("bias"))
    assert trainable(adapt(base, bias=bias)) == 2 * 3 * 2 * 24 + extra


def test_a_second_adapter_is_frozen_until_it_is_set():
    model = adapt(tiny_bert())
    model.add_adapter("other", SurmConfig(structure="toeplitz"))
    names = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"default"}
    model.set_adapter("other")
    names = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"other"}
    assert model.get_model_status().available_adapters == ["default", "other"]


def language_model(**settings):
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 40, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2, **settings))


@needs_peft_021
def test_a_saved_embedding_stays_tied_to_the_head(tmp_path):
    base = language_model(tie_word_embeddings=True)
    model = adapt(base, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True)
    embedding, head = base.model.embed_tokens, base.lm_head
    assert head.weight is embedding.weight
    assert head.weight.requires_grad
    with torch.no_grad():
        head.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(language_model(tie_word_embeddings=True), tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


@needs_peft_021
def test_an_update_of_a_tied_embedding_is_not_tied():
    with pytest.raises(ValueError, match=r"ensure_weight_tying=True is not possible.*modules_to_save") as error:
        adapt(language_model(tie_word_embeddings=True), target_modules=["embed_tokens"], ensure_weight_tying=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["weight", "adapter"])
def test_layers_that_mambas_kernel_does_not_call_are_refused(form):
    base = MambaForCausalLM(MambaConfig(hidden_size=24, num_hidden_layers=1, vocab_size=40, state_size=4))
    with pytest.raises(ValueError, match=r"'out_proj' is incompatible with Mamba"):
        adapt(base, target_modules=["in_proj", "out_proj"], form=form)


# --- save and load ----------------------------------------------------------------------------------------------------

ADAPTERS = {
    tiny_bert: {
        "structure": "toeplitz",
        "bias": "none" if OLD_PEFT else "surm_only",
        "modules_to_save": ["classifier"],
    },
    tiny_vit: {"structure": "circulant+skew_circulant", "structure_options": {"terms": 2}, "fused_parts": ["q", "v"]},
}

LOAD = """
import sys, torch, surm
from pathlib import Path
from peft import PeftModel
from tests.tuners import helpers
for folder in Path(sys.argv[1]).iterdir():
    base = getattr(helpers, folder.name)()
    model = PeftModel.from_pretrained(base, folder, adapter_name="elsewhere").eval()
    output = model(torch.load(folder / "input.pt"))
    torch.save(getattr(output, "logits", output), folder / "output.pt")
"""


def test_saved_adapters_give_the_same_bits_in_another_process(tmp_path):
    outputs = {}
    for base, settings in ADAPTERS.items():
        model = adapt(base(), init_weights=False, **settings).eval()
        with torch.no_grad():  # so that all that is trained differs from a fresh base model
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        x = IDS if base is tiny_bert else torch.randn(2, 3, 32, 32)
        output = model(x)
        outputs[base.__name__] = getattr(output, "logits", output)
        folder = tmp_path / base.__name__
        model.save_pretrained(folder)
        torch.save(x, folder / "input.pt")
        assert not any("default" in name for name in load_file(folder / "adapter_model.safetensors"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", LOAD, tmp_path], check=True, env=environment)
    for name, output in outputs.items():
        assert torch.equal(torch.load(tmp_path / name / "output.pt"), output)


def test_the_file_holds_the_adapter_alone(tmp_path):
    model = adapt(tiny_vit(), structure="circulant", fused_parts=["k"])
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        f"base_model.model.blocks.{block}.attn.qkv.surm_k.{r}": (1, 192) for block in (0, 1) for r in ("r1", "r2")
    }


def test_loading_without_spare_memory_gives_the_same_bits(tmp_path):
    images = torch.randn(2, 3, 32, 32)
    model = adapt(tiny_vit(), init_weights=False).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(loaded(images), model(images))


def test_weights_loaded_into_a_model_in_evaluation_mode_take_effect_and_leave_the_base_alone():
    images = torch.randn(2, 3, 32, 32)
    trained = adapt(tiny_vit(), init_weights=False).eval()
    model = adapt(tiny_vit()).eval()
    weights = {name: p.clone() for name, p in model.named_parameters() if "surm_" not in name}
    model(images)
    set_peft_model_state_dict(model, get_peft_model_state_dict(trained))
    assert torch.equal(model(images), trained(images))
    model.train().eval()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters() if name in weights)


def test_the_same_seed_gives_the_same_start():
    one, two = (get_peft_model_state_dict(adapt(tiny_vit(), seed=3)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(
        one["base_model.model.blocks.0.attn.qkv.surm_q.r2"], one["base_model.model.blocks.0.attn.qkv.surm_k.r2"]
    )


def test_get_peft_model_fills_in_what_it_targets():
    config = SurmConfig()
    get_peft_model(tiny_vit(), config)
    assert config.target_modules == {"attn.qkv"}


# --- patterns, status, collapse ---------------------------------------------------------------------------------------


def test_patterns_choose_structure_and_alpha_by_module(tmp_path):
    pattern = {"second": {"structure": "low_rank", "structure_options": {"rank": 2}}}
    settings = {"target_modules": TWO, "structure_pattern": pattern, "alpha_pattern": {"first": 0.5}, "alpha": 2.0}
    model = adapt(net(), init_weights=False, **settings)
    first, second = model.base_model.model.first, model.base_model.model.second
    assert (first.surm_update["default"].name, first.alpha["default"]) == ("circulant", 0.5)
    assert (second.surm_update["default"].name, second.alpha["default"]) == ("low_rank", 2.0)
    assert second.surm_update["default"].options["rank"] == 2
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(X), model(X))


def test_collapsing_keeps_the_structures_of_patterns(tmp_path):
    model = adapt(net(), target_modules=TWO, structure_pattern={"second": "skew_circulant"}, init_weights=False)
    output = model(X)
    model.collapse()
    torch.testing.assert_close(model(X), output, rtol=0, atol=1e-13)
    assert trainable(model) == 2 * 12
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(X), model(X))


def test_status_tells_what_is_active_and_merged():
    model = adapt(net(), target_modules=TWO)
    model.add_adapter("other", SurmConfig(structure="ldr", target_modules=["first"]))
    [first, second] = model.get_layer_status()
    assert first.available_adapters == ["default", "other"]
    assert (second.available_adapters, second.active_adapters) == (["default"], ["default"])
    assert (first.requires_grad, second.requires_grad) == ({"default": True, "other": False}, {"default": True})
    assert first.devices == {"default": ["cpu"], "other": ["cpu"]}
    status = model.get_model_status()
    assert (status.num_adapter_layers, status.trainable_params, status.merged_adapters) == (2, 2 * 24, [])
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    model.unmerge_adapter()
    model.base_model.disable_adapter_layers()
    assert not model.get_model_status().enabled


# --- large models, several processes ----------------------------------------------------------------------------------


def test_a_model_without_storage_is_adapted_without_any():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # Llama 2 with 7 billion parameters
    settings = {"structure": "ldr", "structure_options": {"terms": 4}}
    model = adapt(model, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], **settings)
    assert trainable(model) == 4_194_304
    assert all(p.is_meta for p in model.parameters())


def test_adapters_are_added_without_storage_and_filled_later(tmp_path):
    source = adapt(net(), structure="ldr", target_modules=TWO, init_weights=False)
    source.save_pretrained(tmp_path)
    model = adapt(net(), target_modules=TWO)
    model.load_adapter(tmp_path, "loaded", low_cpu_mem_usage=True)
    model.set_adapter("loaded")
    assert torch.equal(model(X), source(X))


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from peft import get_peft_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.tuners.helpers import TWO, X, adapt, net
kind, backend, file = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
settings = {"structure": "ldr", "target_modules": TWO, "init_weights": False, "backend": backend}
model, plain = (adapt(net(), **settings) for _ in range(2))
wrapped = {"ddp": DistributedDataParallel, "fsdp2": fully_shard}[kind](model)
for one in (wrapped, plain):
    optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        one(X).square().sum().backward()
        optimizer.step()
states = [get_peft_model_state_dict(one) for one in (model, plain)]
assert states[0].keys() == states[1].keys()
for name, expected in states[1].items():
    found = states[0][name]
    found = found.full_tensor() if hasattr(found, "full_tensor") else found
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("backend", ["fused", "dense", "fft"])
def test_data_parallel_training_is_training(kind, backend, tmp_path):
    command = [sys.executable, "-c", DISTRIBUTED, kind, backend, tmp_path / "meeting"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
