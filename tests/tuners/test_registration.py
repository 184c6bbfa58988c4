import copy
import importlib
import pickle
import subprocess
import sys

import peft
import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import surm.tuners
from surm import SurmConfig, SurmModel


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
print({"timm", "datasets", "hydra", "wandb", "pandas", "matplotlib", "sklearn", "onnx"} & (set(sys.modules) - before))
for name in [name for name in sys.modules if name.partition(".")[0] == "surm"]:
    del sys.modules[name]
import surm
print(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING["SURM"] is surm.SurmConfig)
"""


def test_importing_needs_torch_and_peft_alone_and_importing_again_registers_the_new_classes():
    result = subprocess.run([sys.executable, "-c", FRESH_IMPORTS], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\nTrue\n", "")
