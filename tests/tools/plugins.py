"""Hydra's launchers as parameters of tests."""

from typing import Any

import pytest

from surm.config.command import check_launcher
from surm.shared.errors import ConfigError

TINY = ["model=tiny_vit", "dataset=digits", "trainer.max_steps=3", "trainer.log_every=1", "trainer.threads=1"]


def with_plugin(*names: str) -> list[Any]:
    """Launchers as parameters, each skipped where its package is not installed."""

    def missing(name: str) -> bool:
        try:
            check_launcher(name)
        except ConfigError:
            return True
        return False

    return [
        pytest.param(name, marks=pytest.mark.skipif(missing(name), reason=f"the launcher {name} is not installed"))
        for name in names
    ]
