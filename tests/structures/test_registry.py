import re

import pytest

from surm.structures import STRUCTURES, build, option_names, structure_class


def test_names_and_options() -> None:
    expected = {
        "circulant": ("parametrization", "terms"),
        "skew_circulant": ("parametrization", "terms"),
        "toeplitz": ("symmetric", "factors", "terms"),
        "kronecker": ("factor_shape", "terms"),
        "ldr": ("terms",),
        "low_rank": ("rank", "terms"),
    }
    assert {name: option_names(name) for name in expected} == expected
    assert STRUCTURES.keys() >= expected.keys()
    assert set(option_names("circulant+low_rank")) == {"parametrization", "terms", "rank"}


@pytest.mark.parametrize("name", ["circulant", "toeplitz", "kronecker", "ldr", "low_rank"])
def test_as_many_parameters_as_rank_one_lora(name: str) -> None:
    """Section 5.1: 2 n for each n x n matrix, hence 55,296 for query, key and value of twelve layers."""
    assert structure_class(name).num_parameters(768, 768) == 1536
    assert 12 * 3 * structure_class(name).num_parameters(768, 768) == 55_296


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("circulnt", "circulant"), ("toplitz", "toeplitz"), ("circulant+low_rnk", "low_rank")],
)
def test_unknown_name_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"^Unknown structure '{re.escape(name)}': .*; nearest: {nearest}\\.$"):
        build(name, 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("circulant", {"parametrization": "both"}, "parametrization='both' is not possible; give product or direct."),
        ("toeplitz", {"factors": 3}, "factors=3 is not possible; give 2 or 1."),
        ("toeplitz", {"symmetric": 1}, "symmetric=1 is not possible; give True or False."),
        ("low_rank", {"rank": 0}, "rank=0 is not possible; give an integer of at least 1."),
        ("circulant", {"rank": 2}, "circulant has no option 'rank'; its options are parametrization, terms."),
    ],
)
def test_impossible_option(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(name, 4, 4, **options)


def test_sums_share_options_with_their_parts() -> None:
    structure = build("circulant+low_rank", 6, 4, rank=2, terms=3)
    circulant, low_rank = structure.parts
    assert circulant.options == {"parametrization": "product", "terms": 3}
    assert low_rank.options == {"rank": 2, "terms": 3}
    assert structure_class("circulant+low_rank") is type(structure)
