"""Which cases of a long list are quick tests."""

from collections import defaultdict

import pytest


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
