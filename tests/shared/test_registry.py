import pytest

from surm.shared.registry import look_up


def test_look_up_names_the_nearest_entry():
    registry = {"digits": 1, "textile": 2}
    assert look_up(registry, "textile", "dataset") == 2
    with pytest.raises(ValueError, match="no dataset 'digit': choose one of digits, textile; did you mean digits"):
        look_up(registry, "digit", "dataset")


def test_look_up_does_not_guess_wildly():
    with pytest.raises(ValueError, match=r"no dataset 'xyzzy': choose one of digits\.$"):
        look_up({"digits": 1}, "xyzzy", "dataset")
