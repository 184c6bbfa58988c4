"""Which cases of a long list are quick tests, and kernels for a GPU where there is none."""

from collections import defaultdict
from contextlib import suppress

import pytest
import torch

if not torch.cuda.is_available():
    # Triton asks for its interpreter when its own functions are defined, which whatever imports it first decides.
    with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sample(n)`, n cases, evenly spread, are quick; the others are slow, for `make test-all`."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for listed in cases.values():
        (number,) = listed[0].get_closest_marker("sample").args
        quick = {round(k * (len(listed) - 1) / max(1, number - 1)) for k in range(number)}
        for place, item in enumerate(listed):
            if place not in quick:
                item.add_marker(pytest.mark.slow)
