from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from surm import data
from surm.data import data_hash, load_task
from surm.data.base import Chosen, Split, digest, share
from tests.data.hub_layout import write_tiny

LABELS = np.random.default_rng(0).choice([0, 0, 0, 1, 1, 2, 3], size=2000)
WHOLE = Split([f"example {index}" for index in range(2000)], LABELS)


def part(fraction, seed=0, split=WHOLE, regression=False):
    return share(split, fraction, seed, regression=regression, key=digest)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("regression", [False, True])
def test_a_smaller_part_is_inside_a_larger_one(seed, regression):
    parts = [set(part(fraction, seed, regression=regression).inputs) for fraction in (0.002, 0.02, 0.1, 0.5)]
    assert [len(inputs) for inputs in parts] == [4, 40, 200, 1000]
    for smaller, larger in pairwise(parts):
        assert smaller < larger


def test_labels_keep_their_shares_and_none_is_lost():
    for fraction in (0.02, 0.1, 0.37):
        counts = np.bincount(part(fraction).labels, minlength=4)
        assert np.abs(counts - fraction * np.bincount(LABELS)).max() <= 1
    assert sorted(part(4 / 2000).labels.tolist()) == [0, 1, 2, 3]


def test_a_rare_label_is_in_every_part():
    labels = np.zeros(1000, dtype=np.int64)
    labels[617] = 1
    assert 1 in part(0.002, split=Split(WHOLE.inputs[:1000], labels)).labels


def test_inputs_keep_their_labels_and_order():
    chosen = part(0.1)
    places = [int(text.split()[1]) for text in chosen.inputs]
    assert places == sorted(places)
    assert chosen.labels.tolist() == LABELS[places].tolist()


def test_seeds_draw_different_parts_and_one_seed_the_same():
    assert part(0.1, seed=0).inputs == part(0.1, seed=0).inputs
    common = len(set(part(0.1, seed=0).inputs) & set(part(0.1, seed=1).inputs))
    assert common == pytest.approx(20, abs=20)  # 10 % of 10 % of 2,000, by chance


def test_a_part_does_not_depend_on_the_order_of_the_examples():
    backwards = Split(WHOLE.inputs[::-1], LABELS[::-1])
    assert set(part(0.1, split=backwards).inputs) == set(part(0.1).inputs)


def test_parts_are_drawn_from_what_is_left_by_the_selection_slice():
    whole, tuning = load_task("digits", fraction=0.1), load_task("digits", evaluate_on="selection", fraction=0.1)
    assert (len(whole.train), len(tuning.train)) == (100, 80)
    assert (len(whole.evaluation), len(tuning.evaluation)) == (797, 200)
    held_out = {digest(raw) for raw in tuning.evaluation.inputs}
    assert not held_out & {digest(raw) for raw in tuning.train.inputs}
    assert min(Counter(tuning.train.labels.tolist()).values()) >= 7


def test_the_whole_does_not_depend_on_the_seed():
    assert load_task("digits", seed=3).train.labels.tolist() == load_task("digits").train.labels.tolist()


def test_parts_of_files_are_read_when_they_are_asked_for(tmp_path):
    path = write_tiny("cifar10", tmp_path)
    whole, half = load_task("cifar10", path=path), load_task("cifar10", path=path, fraction=0.5)
    assert isinstance(half.train.inputs, Chosen)
    pairs = {(whole.train.inputs[i], label) for i, label in enumerate(whole.train.labels)}
    assert {(half.train.inputs[i], label) for i, label in enumerate(half.train.labels)} < pairs
    assert half.train.inputs[2:5][1] == half.train.inputs[3]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, 2, float("nan")])
def test_fractions_outside_the_range_are_one_sentence(fraction):
    with pytest.raises(ValueError, match=rf"dataset\.fraction={fraction}: give a share"):
        load_task("digits", fraction=fraction)


def test_parts_have_identities_of_their_own():
    identities = {
        split.identity
        for task in (
            load_task("digits"),
            load_task("digits", fraction=0.1),
            load_task("digits", fraction=0.1, seed=1),
            load_task("digits", evaluate_on="selection"),
        )
        for split in (task.train, task.evaluation)
    }
    assert len(identities) == 6  # two pairs have one evaluation split
    assert None not in identities


def test_a_thousand_images_are_the_same_for_every_seed_and_have_a_hundred_of_each_class(tmp_path):
    path = write_tiny("cifar10_1000", tmp_path, rows=1100)  # of four classes
    small, other = (load_task("cifar10_1000", path=path, seed=seed) for seed in (0, 5))
    whole = load_task("cifar10", path=path)
    assert Counter(small.train.labels.tolist()) == dict.fromkeys(range(4), 250)
    assert [digest(raw) for raw in small.train.inputs] == [digest(raw) for raw in other.train.inputs]
    assert {digest(raw) for raw in small.train.inputs} < {digest(raw) for raw in whole.train.inputs}
    assert small.evaluation.labels.tolist() == whole.evaluation.labels.tolist()
    assert small.content_hash != whole.content_hash
    tuning = load_task("cifar10_1000", path=path, evaluate_on="selection")
    assert (len(tuning.train), len(tuning.evaluation)) == (800, 200)


def test_a_local_copy_stands_in_for_the_hub(tmp_path, monkeypatch):
    path = write_tiny("stl10", tmp_path)
    monkeypatch.setenv("SURM_LOCAL_DATA", str(tmp_path))
    data._read.cache_clear()
    try:
        assert data_hash("stl10") == data_hash("stl10", path=path)
        assert len(load_task("stl10").train) == 24
    finally:
        data._read.cache_clear()
