import json
import math

import numpy as np
import pytest

from surm.studies.pinwheel import (
    EMBEDDINGS,
    FULL,
    FULL_RATES,
    METHODS,
    READINGS,
    PinwheelOptions,
    found_settings,
    make_data,
    make_networks,
    train,
)
from surm.studies.pinwheel import parts as pinwheel_parts
from surm.studies.pinwheel_search import PinwheelSearchOptions, best_rate, compute, paper_losses, parts, save, validate


def test_a_search_goes_on_until_the_best_is_inside():
    found = best_rate(lambda rate: abs(math.log(rate / 0.08)), [0.003, 0.009, 0.027])
    assert found.rate == 0.081
    assert list(found.tried) == ["0.003", "0.009", "0.027", "0.081", "0.24"]
    assert best_rate(lambda rate: rate if rate > 4e-4 else 1.0, [0.003, 0.009]).rate == 0.001


def test_a_loss_that_is_not_finite_is_never_the_best():
    found = best_rate(lambda rate: math.nan if rate > 0.005 else 1 - rate, [0.001, 0.003, 0.009])
    assert (found.rate, found.tried["0.009"]) == (0.003, None)


def test_the_study_reads_what_the_search_wrote(tmp_path):
    options = PinwheelSearchOptions(seeds=[100], epochs=2, points=[5], noise=[0.0, 0.2], activation=["relu"])
    result = compute(parts(options)[0], lambda line: None)
    save(result, tmp_path / "settings.json")
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings == result["settings"]
    assert settings.keys() == found_settings().keys()
    data, losses = settings["tried"]["data"], paper_losses()
    for entry in data:
        distance = sum(abs(math.log(entry["losses"][name] / losses[name])) for name in EMBEDDINGS)
        assert entry["distance"] == pytest.approx(distance, rel=1e-5)
    assert settings["noise"] == min(data, key=lambda entry: entry["distance"])["noise"]


def test_every_committed_rate_is_the_best_of_those_tried_and_not_at_an_edge():
    found = found_settings()
    for reading in READINGS:
        for embedding in EMBEDDINGS:
            assert list(found["rates"][reading][embedding]) == [FULL, *METHODS]
            for method, tried in found["tried"]["rates"][reading][embedding].items():
                losses = {float(rate): math.inf if loss is None else loss for rate, loss in tried.items()}
                chosen = found["rates"][reading][embedding][method]
                assert losses[chosen] == min(losses.values())
                assert min(losses) < chosen < max(losses)


def test_the_committed_data_are_the_nearest_to_the_paper():
    found = found_settings()
    nearest = min(found["tried"]["data"], key=lambda entry: entry["distance"])
    assert [found[key] for key in ("points", "noise", "activation")] == [
        nearest[key] for key in ("points", "noise", "activation")
    ]
    options = PinwheelSearchOptions()
    grid = len(options.points) * len(options.noise) * len(options.activation)
    assert len(found["tried"]["data"]) == grid


def test_its_seeds_are_none_of_the_studys():
    assert not set(PinwheelSearchOptions().seeds) & set(range(100))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"points": []}, r"study\.points=\[\]"),
        ({"noise": [1.5]}, r"study\.noise=1\.5"),
        ({"activation": ["sine"]}, r"study\.activation=sine"),
        ({"rates": [0.1]}, r"study\.rates=\[0\.1\]: give two or more"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(PinwheelSearchOptions(**options))


def test_the_full_network_alone_is_searched_by_its_late_median_on_the_found_data(tmp_path):
    options = PinwheelSearchOptions(seeds=[100], epochs=40, full_alone=True, rates=[0.003, 0.009])
    (part,) = parts(options)
    assert [part[key] for key in ("points", "noise")] == [found_settings()[key] for key in ("points", "noise")]
    result = compute(part, lambda line: None)
    save(result, tmp_path / "full.json")
    found = json.loads((tmp_path / "full.json").read_text())
    for embedding in EMBEDDINGS:
        tried = {float(rate): loss for rate, loss in found["tried"]["rates"]["in_place"][embedding][FULL].items()}
        chosen = found["rates"]["in_place"][embedding][FULL]
        assert tried[chosen] == min(tried.values())
        assert min(tried) < chosen < max(tried)
    x, labels = make_data([100], part["points"], part["noise"])
    networks = make_networks(FULL, "in_place", "trained", part["activation"], [100])
    losses = train(networks, x, labels, rate=chosen, epochs=40).losses[:, 0].numpy()
    assert tried[chosen] == pytest.approx(np.median(losses[-2:]), rel=1e-5)  # a twentieth of 40 epochs


def test_the_finer_rate_is_the_full_network_s_alone():
    coarse, fine = (pinwheel_parts(PinwheelOptions(finer_full_rate=finer)) for finer in (False, True))
    finer = json.loads(FULL_RATES.read_text())["rates"]["in_place"]
    for before, after in zip(coarse, fine, strict=True):
        assert after["rates"].pop(FULL) == finer[after["embedding"]][FULL]
        del before["rates"][FULL]
        assert before == after
