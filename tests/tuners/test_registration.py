import copy
import importlib
import pickle
import subprocess
import sys

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import surm.tuners
from surm import SurmConfig, SurmModel
from surm.tuners.saving import NOTE
from tests.tools.skips import needs_peft_021
from tests.tuners.helpers import IDS, TINY


def test_the_method_is_a_member_of_pefts_enumeration():
    member = PeftType("SURM")
    assert member is PeftType.SURM is PeftType["SURM"]
    assert (member.name, member.value, member == "SURM") == ("SURM", "SURM", True)
    assert list(PeftType).count(member) == 1
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member


def test_peft_knows_the_classes_and_the_prefix():
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SURM] is SurmConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.SURM] is SurmModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.SURM] == "surm_"


def test_a_reload_registers_again():
    importlib.reload(surm.tuners)
    test_peft_knows_the_classes_and_the_prefix()
    test_the_method_is_a_member_of_pefts_enumeration()


def test_a_method_of_that_name_in_peft_itself_is_respected(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.SURM, peft.LoraConfig)
    with pytest.raises(ImportError, match=f"peft {peft.__version__} has a method called SURM of its own"):
        importlib.reload(surm.tuners)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.SURM] is peft.LoraConfig


FRESH_IMPORTS = """
import sys, peft
before = set(sys.modules)
import surm
added = {name.partition(".")[0] for name in set(sys.modules) - before}
strangers = added - sys.stdlib_module_names - {"surm", "torch", "peft"}
print({name for name in strangers if not name.startswith("__editable__")})
for name in [name for name in sys.modules if name.partition(".")[0] == "surm"]:
    del sys.modules[name]
import surm
print(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["SURM"] is surm.SurmConfig)
"""


def test_importing_needs_torch_and_peft_alone_and_importing_again_registers_the_new_classes():
    result = subprocess.run([sys.executable, "-c", FRESH_IMPORTS], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\nTrue\n", "")


# --- loading, by PEFT and by transformers -----------------------------------------------------------------------------

SETTINGS = {
    "weight": {"structure": "toeplitz", "alpha": 0.5, "alpha_pattern": {"v_proj": 2.0}},
    "sum": {"structure": "circulant+low_rank", "structure_pattern": {"q_proj": "kronecker"}},
    "adapter": {"form": "adapter"},
    "bottleneck": {"form": "adapter", "structure": "bottleneck", "target_modules": "pfeiffer"},
}


@pytest.fixture
def base(tmp_path):
    """A folder with a language model."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY, vocab_size=50, num_key_value_heads=1)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def language_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(base, settings):
    torch.manual_seed(1)
    config = SurmConfig(init_weights=False, task_type="CAUSAL_LM", **settings)
    return get_peft_model(language_model(base), config).eval()


def state(model):
    return {name.removeprefix("base_model.model."): value for name, value in model.state_dict().items()}


def assert_same(loaded, model, expected):
    """The same numbers, bit for bit; what a CPU makes of them may hang on where they are in memory."""
    torch.testing.assert_close(state(loaded), state(model), rtol=0, atol=0)
    torch.testing.assert_close(loaded(IDS).logits, expected)


def with_load_adapter(base, saved):
    model = language_model(base)
    model.load_adapter(str(saved))
    return model.eval()


LOADERS = [  # transformers reads the names that PEFT writes since 0.21
    lambda base, saved: PeftModel.from_pretrained(language_model(base), saved),
    lambda base, saved: AutoPeftModelForCausalLM.from_pretrained(saved),
    pytest.param(with_load_adapter, marks=needs_peft_021),
    pytest.param(lambda base, saved: language_model(saved), marks=needs_peft_021),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("load", LOADERS, ids=["PeftModel", "AutoPeftModel", "load_adapter", "AutoModel"])
def test_a_saved_adapter_loads_bit_for_bit(base, tmp_path, settings, load):
    model = adapted(base, SETTINGS[settings])
    expected = model(IDS).logits
    with model.disable_adapter():
        assert (model(IDS).logits - expected).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert_same(load(base, tmp_path / "adapter"), model, expected)


@needs_peft_021
@pytest.mark.parametrize("settings", SETTINGS)
def test_transformers_adds_and_saves_an_adapter_by_itself(base, tmp_path, settings):
    model, plain = language_model(base), language_model(base)(IDS).logits
    model.add_adapter(SurmConfig(init_weights=False, **SETTINGS[settings]), "mine")
    expected = model(IDS).logits
    assert (expected - plain).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "adapter")
    loaded = language_model(base)
    loaded.load_adapter(str(tmp_path / "adapter"), "mine")
    assert_same(loaded.eval(), model, expected)
    model.disable_adapters()
    assert torch.equal(model(IDS).logits, plain)
    model.enable_adapters()
    model.delete_adapter("mine")
    assert torch.equal(model(IDS).logits, plain)


def test_trained_tokens_and_modules_are_saved_and_loaded(base, tmp_path):
    extra = {"trainable_token_indices": [1, 4], "modules_to_save": ["model.norm"]}
    model = adapted(base, {"target_modules": ["q_proj"]} | extra)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == 2 * 2 * 24 + 2 * 24 + 24  # queries, two tokens, the norm
    before = model(IDS).logits
    model(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(trained, lr=1.0).step()
    expected = model(IDS).logits
    assert (expected - before).abs().max() > 1e-4
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(language_model(base), tmp_path / "adapter").eval()
    assert loaded.peft_config["default"].trainable_token_indices == [1, 4]
    torch.testing.assert_close(loaded(IDS).logits, expected)


WITHOUT_SURM = """
import sys
from peft import PeftConfig
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    print(error)
import surm
print(type(PeftConfig.from_pretrained(sys.argv[1])).__name__)
"""


def test_the_model_card_says_once_what_peft_cannot(base, tmp_path):
    model = adapted(base, {})
    model.add_adapter("other", SurmConfig())
    for _ in range(2):
        model.save_pretrained(tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.text.count(NOTE) == 1
    assert card.data.library_name == "peft"
    assert "import surm" in NOTE
    model.save_pretrained(tmp_path / "named", selected_adapters=["other"])
    assert NOTE in (tmp_path / "named" / "README.md").read_text()
    command = [sys.executable, "-c", WITHOUT_SURM, str(tmp_path / "adapter")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("'SURM'\nSurmConfig\n", "")


def test_a_readme_that_is_no_model_card_stays_as_it_is(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# My project\n")
    SurmConfig().save_pretrained(tmp_path)
    SurmConfig().save_pretrained(tmp_path / "adapter")
    assert readme.read_text() == "# My project\n"
