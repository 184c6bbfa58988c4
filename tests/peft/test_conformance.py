"""PEFT's own tests pass on SURM, and the translation of its rows leaves none out without a reason."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from peft import LoraConfig, LoraRuntimeConfig

from surm.shared.paths import REPOSITORY
from surm.structures import STRUCTURES, structure_class
from surm.tuners import SurmConfig
from tests.peft.exceptions import EXCEPTIONS
from tests.peft.rows import Variant, adds_up, config, options, preset, translate, variant_of

SCRIPT = REPOSITORY / "scripts" / "peft_conformance.py"
WEIGHT = Variant("circulant", "weight")
ADAPTER = Variant("ldr", "adapter")


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("peft_conformance", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def source(script):
    """PEFT's tests are there, from an earlier run or from a package index."""
    try:
        script.prepared(None)
    except subprocess.CalledProcessError:
        pytest.skip("no package index has the source of PEFT, which holds its tests")


def run(file: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--json", str(file)], capture_output=True, text=True, cwd=REPOSITORY
    )
    report = json.loads(file.read_text())
    assert done.returncode == 0, "\n".join(report["failures"])
    return report


@pytest.mark.slow
def test_peft_tests_of_custom_models_pass_with_the_circulant_in_weight_form(tmp_path):
    chosen = ["--structure", "circulant", "--form", "weight", "--file", "custom_models", "--file", "config"]
    (variant, counts), *others = run(tmp_path / "report.json", *chosen)["table"].items()
    assert (variant, others) == ("circulant/weight", [])
    assert counts["passed"] > 800
    assert counts["skipped"] < 0.05 * counts["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["weight", "adapter"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_peft_tests_pass(tmp_path, structure, form):
    if form == "adapter" and structure_class(structure).needs_weight:
        pytest.skip("an adapter has no weight to be made from")
    counts = run(tmp_path / "report.json", "--structure", structure, "--form", form)["table"][f"{structure}/{form}"]
    assert counts["passed"] > {"weight": 1000, "adapter": 600}[form]
    # Refused is only a merge where an activation stands in the way, and a sum of what is more than its parameters.
    assert ("refused" in counts) == (not adds_up(Variant(structure, form)))


@pytest.mark.slow
def test_a_failure_is_counted_and_named(script, tmp_path):
    (tmp_path / "peft_tests").mkdir()
    for name, text in {
        "__init__": "",
        "testing_utils": "",
        "testing_common": "class PeftCommonTester:\n    _test_weighted_combination_of_adapters_ia3 = None\n",
        "test_config": (
            "import pytest\n"
            "from peft import LoraConfig, LoKrConfig\n"
            "@pytest.mark.parametrize('config_class, mandatory_kwargs', [(LoKrConfig, {}), (LoraConfig, {'r': 4})])\n"
            "def test_name(config_class, mandatory_kwargs):\n"
            "    assert config_class(**mandatory_kwargs).structure == 'toeplitz'\n"
            "def test_of_another_method():\n"
            "    assert False\n"
        ),
    }.items():
        (tmp_path / "peft_tests" / f"{name}.py").write_text(text)
    table, failures = script.conformance(tmp_path, ["toeplitz", "ldr"], ["weight"], ("config",), "0")
    assert table == {"toeplitz/weight": Counter(passed=1), "ldr/weight": Counter(failed=1)}
    assert failures == ["peft_tests.test_config::test_name[ldr-weight]"]


@pytest.mark.parametrize(
    ("inside", "outcome"),
    [
        ("", "passed"),
        ('<failure message="x"/>', "failed"),
        ('<error message="x"/>', "failed"),
        ('<skipped type="pytest.skip" message="not here"/>', "skipped"),
        ('<skipped type="pytest.skip" message="refused: form"/>', "refused"),
        ('<skipped type="pytest.xfail" message="a reason"/>', "excepted"),
    ],
)
def test_outcomes_are_read_from_the_report(script, inside, outcome):
    assert script.outcome_of(ElementTree.fromstring(f"<testcase>{inside}</testcase>")) == outcome


def test_an_option_of_lora_becomes_the_one_that_says_the_same():
    lora = {"target_modules": ["lin0"], "r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "bias": "lora_only"}
    same = {"target_modules": ["lin0"], "dropout": 0.1, "bias": "surm_only"}
    assert options(lora, WEIGHT) == {**same, "alpha": 2.0, "structure": "circulant", "form": "weight"}
    assert options(lora, ADAPTER) == {**same, "structure": "ldr", "form": "adapter"}


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"target_modules": ["mha"]}, {"lora_bias": True}]
)
def test_a_row_of_what_only_lora_does_is_left_out(lora):
    assert options({"target_modules": ["lin0"], **lora}, WEIGHT) is None


def test_a_configuration_of_lora_is_translated_by_what_it_sets():
    found = config(LoraConfig(target_modules=["lin0"], r=16, init_lora_weights=False, modules_to_save=["x"]), ADAPTER)
    assert found == SurmConfig(
        structure="ldr", form="adapter", target_modules=["lin0"], init_weights=False, modules_to_save=["x"]
    )
    assert config(LoraConfig(runtime_config=LoraRuntimeConfig(ephemeral_gpu_offload=True)), WEIGHT) is None


def test_a_random_start_is_a_stronger_one():
    lora = {"init_lora_weights": False, "r": 8, "lora_alpha": 16}
    assert options(lora, WEIGHT) == {"init_weights": False, "alpha": 8.0, "structure": "circulant", "form": "weight"}
    assert options(lora, ADAPTER) == {"init_weights": False, "structure": "ldr", "form": "adapter"}


def test_a_preset_only_differs_in_its_defaults():
    assert preset(ADAPTER)(target_modules=["a"]).to_dict() == (
        SurmConfig(structure="ldr", form="adapter", target_modules=["a"]).to_dict()
    )


def test_a_mark_gets_a_row_for_each_variant_and_no_other_method():
    rows = [("x", LoraConfig, {"target_modules": ["a"]}), ("y", SurmConfig, {}), ("z", LoraConfig, {"use_rslora": 1})]
    mark = pytest.mark.parametrize(("test_name", "config_cls", "config_kwargs"), rows).mark
    values = [row.values for row in translate(mark, [WEIGHT, ADAPTER]).args[1]]
    assert [(name, kind, variant_of({"config_kwargs": kwargs})) for name, kind, kwargs in values] == [
        ("x", SurmConfig, WEIGHT),
        ("x", SurmConfig, ADAPTER),
    ]


def test_exceptions_are_few_and_none_is_about_merging_saving_or_several_adapters():
    assert len(EXCEPTIONS) <= 5
    assert all(reason.endswith(".") for reason in EXCEPTIONS.values())
    assert not any(word in name for name, _ in EXCEPTIONS for word in ("merge", "save", "load", "multiple", "adapters"))
