import hashlib
import importlib.metadata

import pytest

from surm.shared.assets import Asset


def test_absent_package_is_one_sentence_with_the_remedy():
    with pytest.raises(FileNotFoundError, match=r"^The package no-such-package 1.0 is not installed; `make assets`"):
        Asset("no-such-package", "file", version="1.0").locate()


def test_another_version_is_refused_by_name():
    installed = importlib.metadata.version("torch")
    with pytest.raises(FileNotFoundError, match=rf"torch 0.0 is needed but {installed.split('+')[0]}.* is installed"):
        Asset("torch", "torch/__init__.py", version="0.0").locate()


def test_located_file_is_the_package_s_own():
    import torch

    asset = Asset("torch", "torch/__init__.py")
    assert str(asset.locate()) == torch.__file__
    with open(torch.__file__, "rb") as file:
        assert asset.sha256() == hashlib.sha256(file.read()).hexdigest()
