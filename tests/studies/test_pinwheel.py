import math

import numpy as np
import pytest
import torch

from surm.studies.pinwheel import (
    CLASSES,
    EMBEDDINGS,
    FULL,
    METHODS,
    READINGS,
    Network,
    PinwheelOptions,
    compute,
    found_settings,
    linear_cka,
    make_data,
    make_networks,
    make_pinwheel,
    num_parameters,
    parts,
    spaced_epochs,
    train,
    validate,
)

PART = {
    "reading": "in_place",
    "embedding": "trained",
    "seeds": [0, 1],
    "epochs": 20,
    "points": 20,
    "noise": 0.1,
    "activation": "relu",
    "rates": dict.fromkeys((FULL, *METHODS), 0.01),
}


def fit(method, reading, embedding, seeds, *, points=20, epochs=30, start=None, rate=0.01):
    x, labels = make_data(seeds, points, 0.1)
    networks = make_networks(method, reading, embedding, "relu", seeds)
    for network in networks if start else ():
        start(network)
    return train(networks, x, labels, rate=rate, epochs=epochs), networks


# --- data -------------------------------------------------------------------------------------------------------------


def test_classes_are_balanced_and_spokes_end_where_the_papers_do():
    x, labels = make_pinwheel(0, 200, 0.0)
    assert x.shape == (5 * 200, 2)
    assert torch.bincount(labels).tolist() == [200] * CLASSES
    radius = x.norm(dim=-1)
    assert radius.mean() == pytest.approx(10, abs=0.5)
    assert radius.quantile(0.99) == pytest.approx(17, abs=0.7)  # 10 (1 + 0.3 * 2.33)


def test_outliers_are_a_share_of_every_class_and_lie_in_the_disc():
    with_outliers, labels = make_pinwheel(3, 100, 0.2)
    far = with_outliers.norm(dim=-1) > 20
    assert torch.bincount(labels).tolist() == [100] * CLASSES
    assert with_outliers.norm(dim=-1).max() <= 25
    # (25^2 - 20^2) / 25^2 = 36 % of 100 outliers lie beyond 20, where spokes do not reach.
    assert 25 < far.sum() < 50


def test_a_seed_has_its_own_data():
    x, _ = make_data([0, 1], 10, 0.1)
    assert not torch.equal(x[0], x[1])
    assert torch.equal(x[0], make_pinwheel(0, 10, 0.1)[0])


# --- network ----------------------------------------------------------------------------------------------------------


def test_trained_parameters_of_the_matrix():
    counts = {method: num_parameters(method) for method in (FULL, *METHODS)}
    assert counts == {
        "full": 4096,
        "LoRA r=1": 128,
        "LoRA r=2": 256,
        "LoRA r=4": 512,
        "LoRA r=8": 1024,
        "circulant": 128,
        "symmetric Toeplitz": 128,
        "Toeplitz": 127,
    }


@pytest.mark.parametrize("method", [FULL, *METHODS])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_what_is_trained_is_the_matrix_the_head_and_perhaps_the_embedding(method, embedding):
    (network,) = make_networks(method, "update", embedding, "relu", [0])
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    head, embedded = 64 * 5 + 5, 2 * 64 + 64
    assert trained == num_parameters(method) + head + (embedded if embedding == "trained" else 0)


def test_methods_of_a_seed_share_embedding_head_and_weight():
    full, lora, toeplitz = (
        make_networks(method, "update", "frozen", "relu", [7])[0] for method in (FULL, "LoRA r=4", "Toeplitz")
    )
    for other in (lora, toeplitz):
        for name in ("embedding.weight", "embedding.bias", "head.weight", "head.bias", "weight"):
            assert torch.equal(full.get_parameter(name), other.get_parameter(name)), name


def test_an_update_starts_at_the_weight_and_a_matrix_in_place_at_its_norm():
    (full,) = make_networks(FULL, "update", "frozen", "relu", [2])
    norm = full.weight.norm().item()
    assert norm == pytest.approx(math.sqrt(64 / 3), rel=0.05)  # 64^2 entries, uniform within 1/8
    for method in METHODS:
        (update,) = make_networks(method, "update", "frozen", "relu", [2])
        (in_place,) = make_networks(method, "in_place", "frozen", "relu", [2])
        assert torch.equal(update.weight, full.weight)
        assert not update.structure.dense().any()
        assert not in_place.weight.any()
        assert in_place.structure.dense().norm().item() == pytest.approx(norm, rel=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FULL, "LoRA r=1", "circulant", "symmetric Toeplitz", "Toeplitz"])
def test_seeds_do_not_interact(method):
    together, _ = fit(method, "in_place", "trained", [0, 1, 2])
    for at, seed in enumerate([0, 1, 2]):
        alone, _ = fit(method, "in_place", "trained", [seed])
        torch.testing.assert_close(together.losses[:, at], alone.losses[:, 0], rtol=1e-5, atol=0)


def test_training_equals_a_plain_loop_over_one_network():
    (network,) = make_networks("circulant", "update", "frozen", "relu", [4])
    x, labels = make_pinwheel(4, 20, 0.1)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        hidden = torch.relu(network.embedding(x) @ network.weight.T + network.structure(network.embedding(x)))
        loss = torch.nn.functional.cross_entropy(network.head(hidden), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted, _ = fit("circulant", "update", "frozen", [4])
    np.testing.assert_allclose(fitted.losses[:-1, 0], losses, rtol=1e-4)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_what_is_frozen_stays_and_what_is_trained_moves(embedding):
    trained, (network,) = fit("circulant", "update", embedding, [0], epochs=3)
    assert torch.equal(trained.parameters["weight"][0], network.weight)
    moved = not torch.equal(trained.parameters["embedding.weight"][0], network.embedding.weight)
    assert moved == (embedding == "trained")
    assert not torch.equal(trained.parameters["structure.r1"][0], network.structure.r1)


@pytest.mark.parametrize("method", ["LoRA r=1", "circulant", "symmetric Toeplitz", "Toeplitz"])
def test_in_place_a_zero_start_behind_a_relu_stays_at_ln_5(method):
    def zero(network: Network) -> None:
        network.structure.reset_parameters()
        network.head.bias.data.zero_()  # else it is a few steps of the bias until all classes are equally likely

    stuck, _ = fit(method, "in_place", "trained", [0, 1], epochs=100, start=zero)
    torch.testing.assert_close(stuck.losses, torch.full_like(stuck.losses, math.log(5)))
    free, _ = fit(method, "in_place", "trained", [0, 1], epochs=100)
    assert free.losses[-1].max() < 1.4


# --- measures ---------------------------------------------------------------------------------------------------------


def test_linear_cka_is_the_normalised_hsic_of_the_gram_matrices():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 7)) + 3, generator.standard_normal((40, 5))
    y[:, 0] += x[:, 0]
    centring = np.eye(40) - np.full((40, 40), 1 / 40)
    gram_x, gram_y = (centring @ features @ features.T @ centring for features in (x, y))
    hsic = np.trace(gram_x @ gram_y) / np.sqrt(np.trace(gram_x @ gram_x) * np.trace(gram_y @ gram_y))
    assert linear_cka(torch.tensor(x), torch.tensor(y)) == pytest.approx(hsic, rel=1e-12)
    assert 0.1 < hsic < 0.9


def test_linear_cka_does_not_see_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(x, -3 * x @ rotation + 5) == pytest.approx(1, rel=1e-12)
    assert linear_cka(x, x**2) < 0.9


def test_curves_are_thinned_evenly_on_a_log_axis():
    epochs = spaced_epochs(2000)
    assert epochs[:4] == [0, 1, 2, 3]
    assert epochs[-1] == 2000
    assert 45 <= len(epochs) <= 61
    assert np.diff(np.log(epochs[-20:])) == pytest.approx(math.log(2000) / 59, rel=0.1)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_part_gives_rows_curves_and_regions():
    result = compute(PART, lambda line: None)
    rows = result["rows"]
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for m in (FULL, *METHODS) for s in (0, 1)]
    assert all(row["cka"] == 1 for row in rows if row["method"] == FULL)
    assert all(0 < row["cka"] < 1 for row in rows if row["method"] != FULL)
    assert all(round(row["accuracy"] * 100, 6) % 1 == 0 for row in rows)  # 100 points
    curves = result["curves"]
    assert [losses[-1] for losses in curves["losses"]["circulant"]] == [
        row["loss"] for row in rows if row["method"] == "circulant"
    ]
    assert {len(losses) for members in curves["losses"].values() for losses in members} == {len(curves["epochs"])}
    regions = result["regions"]
    assert len(regions["points"]) == len(regions["labels"]) == 100
    for picture in regions["decisions"].values():
        assert [len(row) for row in picture] == [48] * 48
        assert set("".join(picture)) <= set("01234")
    assert compute(PART, lambda line: None) == result


def test_decisions_are_those_of_the_trained_network_at_the_cells():
    x, labels = make_pinwheel(0, 40, 0.0)
    part = {**PART, "seeds": [0], "points": 40, "noise": 0.0, "epochs": 400, "rates": {FULL: 0.01}}
    regions = compute(part, lambda line: None)["regions"]
    cell = 50 / 48
    decided = [regions["decisions"][FULL][int((b + 25) / cell)][int((a + 25) / cell)] for a, b in x.tolist()]
    agree = np.mean([int(digit) == label for digit, label in zip(decided, labels.tolist(), strict=True)])
    assert agree > 0.9


def test_parts_hold_the_settings_that_were_found():
    found = found_settings()
    asked = parts(PinwheelOptions())
    assert {(part["reading"], part["embedding"]) for part in asked} == {(r, e) for r in READINGS for e in EMBEDDINGS}
    assert [part["seeds"] for part in asked[:2]] == [[0, 1, 2], [3, 4]]
    for part in asked:
        assert (part["points"], part["noise"], part["activation"]) == (
            found["points"],
            found["noise"],
            found["activation"],
        )
        assert part["rates"] == found["rates"][part["reading"]][part["embedding"]]
        assert next(iter(part["rates"])) == FULL  # the others are compared with it


def test_three_seeds_are_parts_of_five():
    five, three = parts(PinwheelOptions()), parts(PinwheelOptions(seeds=[0, 1, 2]))
    assert len(three) == 4
    assert all(part in five for part in three)


def test_given_settings_replace_the_found_ones():
    part = parts(PinwheelOptions(points=30, noise=0.0, activation="tanh", rate=0.5, readings=["update"]))[0]
    assert (part["points"], part["noise"], part["activation"], part["reading"]) == (30, 0.0, "tanh", "update")
    assert set(part["rates"].values()) == {0.5}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": []}, r"study\.seeds=\[\]"),
        ({"seeds": [1, 1]}, r"study\.seeds=\[1, 1\]"),
        ({"epochs": 0}, r"study\.epochs=0: give a whole number"),
        ({"readings": ["adapter"]}, r"study\.readings=\['adapter'\]: give one or both of in_place, update"),
        ({"embeddings": []}, r"study\.embeddings=\[\]"),
        ({"points": 0}, r"study\.points=0"),
        ({"noise": 1.0}, r"study\.noise=1\.0"),
        ({"activation": "sine"}, r"study\.activation=sine: allowed are relu, tanh"),
        ({"rate": -1.0}, r"study\.rate=-1\.0"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(PinwheelOptions(**options))
