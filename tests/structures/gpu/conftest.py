"""Kernels run on a GPU or, where there is none, in Triton's interpreter; nothing is collected where there is no Triton.

The interpreter is asked for when kernels are defined and when they run. Nothing else in the tests defines or runs any.
"""

from collections.abc import Iterator
from importlib import import_module

import pytest

from tests.structures.gpu import DEVICE, HAS_TRITON

collect_ignore_glob = [] if HAS_TRITON else ["test_*.py"]


def interpreting() -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    if DEVICE.type == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    return patch


if HAS_TRITON:
    defining = interpreting()
    for name in ("factors", "form", "transform"):
        import_module(f"surm.structures.gpu.{name}")
    defining.undo()


@pytest.fixture(scope="package", autouse=True)
def _interpreter() -> Iterator[None]:
    running = interpreting()
    yield
    running.undo()
