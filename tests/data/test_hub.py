import hashlib
import re

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from surm.config.compose import register_schema
from surm.data import DATASETS, check_data, data_facts, data_hash, data_modality, data_revision, load_task
from surm.data.hub import ImageBytes
from surm.shared.paths import CONFIG_DIRECTORY
from tests.data.hub_layout import GLUE, HUB_IMAGES, VTAB, sentence, write_parquet, write_tiny
from tests.tools.skips import local_data

PUBLIC = [f"glue/{task}" for task in GLUE] + list(HUB_IMAGES) + [f"vtab/{task}" for task in VTAB]
FROM_PATH = [*PUBLIC, "imagenet1k", "inat2021", "image_folder", "table"]

# The paper's metrics (captions of Tables 5 and 7): Matthews, F1 and Spearman for three tasks, accuracy for the others.
METRICS = {
    "cola": ("matthews", "accuracy"),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("spearman", "pearson"),
    "qqp": ("accuracy", "f1"),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def one_sentence(error):
    """Whether a message has no line break and ends once."""
    return "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("name", FROM_PATH)
def test_every_data_set_is_read_from_files_in_its_own_layout(name, tmp_path):
    path = write_tiny(name, tmp_path, rows=20)
    check_data(name, path=path)
    task, tuning = load_task(name, path=path), load_task(name, path=path, evaluate_on="selection")
    assert (len(task.train), len(task.evaluation)) == (20, 10)
    assert len(tuning.train) + len(tuning.evaluation) == 20
    assert task.modality == data_modality(name)
    assert task.content_hash == data_hash(name, path=path)
    assert task.primary_metric == task.metrics[0]
    if name in PUBLIC:
        facts = data_facts(name)
        assert task.num_labels == facts.num_labels
        assert (facts.tokens is None) == (task.modality == "image")
    if not task.regression:
        assert len(task.label_names) == task.num_labels
        assert max(task.train.labels) < task.num_labels


@pytest.mark.parametrize("task", GLUE)
def test_glue_holds_the_rows_of_its_columns(task, tmp_path):
    path = write_tiny(f"glue/{task}", tmp_path)
    columns, classes = GLUE[task]
    read = load_task(f"glue/{task}", path=path)
    split = "validation_matched" if task == "mnli" else "validation"
    for ours, theirs in ((read.train, "train"), (read.evaluation, split)):
        rows = pd.read_parquet(path / f"{theirs}-00000-of-00001.parquet")
        expected = rows[columns[0]].tolist() if len(columns) == 1 else list(rows[list(columns)].itertuples(index=False))
        assert list(ours.inputs) == [tuple(row) if len(columns) == 2 else row for row in expected]
        assert ours.labels.tolist() == rows["label"].astype(float).tolist()
        assert ours.labels.dtype == (np.float64 if not classes else np.int64)
    assert read.regression == (task == "stsb")
    assert read.metrics == METRICS.get(task, ("accuracy",))


def test_mnli_has_its_mismatched_genres_beside_the_reported_split(tmp_path):
    path = write_tiny("glue/mnli", tmp_path)
    mismatched = load_task("glue/mnli", path=path).also["mismatched"]
    rows = pd.read_parquet(path / "validation_mismatched-00000-of-00001.parquet")
    assert [premise for premise, _ in mismatched.inputs] == rows["premise"].tolist()
    assert load_task("glue/mnli", path=path, evaluate_on="selection").also == {}


def test_a_regression_has_no_baseline_and_one_label(tmp_path):
    task = load_task("glue/stsb", path=write_tiny("glue/stsb", tmp_path))
    assert (task.num_labels, task.label_names, task.baselines) == (1, (), {})


def test_rows_without_a_label_are_left_out(tmp_path, rng):
    for split in ("train", "validation"):
        table = {"sentence": [sentence(rng) for _ in range(6)], "label": [0, 1, -1, 1, -1, 0]}
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", table)
    task = load_task("glue/sst2", path=tmp_path)
    assert task.train.labels.tolist() == [0, 1, 1, 0]
    rows = pd.read_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert list(task.train.inputs) == rows[rows["label"] != -1]["sentence"].tolist()


def test_shards_are_read_in_order_of_name(tmp_path, rng):
    for shard, text in ((1, "second"), (0, "first")):
        write_parquet(tmp_path / f"train-{shard:05}-of-00002.parquet", {"sentence": [text, text], "label": [0, 1]})
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", {"sentence": ["x"], "label": [0]})
    assert list(load_task("glue/cola", path=tmp_path).train.inputs) == ["first", "first", "second", "second"]


@pytest.mark.parametrize("name", HUB_IMAGES)
def test_images_stay_encoded(name, tmp_path):
    path = write_tiny(name, tmp_path)
    task = load_task(name, path=path)
    column, label, _ = HUB_IMAGES[name]
    rows = pd.read_parquet(path / "test-00000-of-00001.parquet")
    assert isinstance(task.evaluation.inputs, ImageBytes)
    assert [task.evaluation.inputs[i] for i in range(12)] == [image["bytes"] for image in rows[column]]
    assert task.evaluation.labels.tolist() == rows[label].tolist()
    assert task.label_names[1] == "c1"


def test_hash_is_over_the_files(tmp_path):
    path = write_tiny("stl10", tmp_path)
    total = hashlib.sha256()
    for split in ("train", "test"):
        content = (path / f"{split}-00000-of-00001.parquet").read_bytes()
        total.update(f"{len(content)}\n".encode() + content)
    assert data_hash("stl10", path=path) == total.hexdigest()


def test_other_bytes_have_another_hash(tmp_path):
    one = data_hash("glue/rte", path=write_tiny("glue/rte", tmp_path / "one"))
    other = data_hash("glue/rte", path=write_tiny("glue/rte", tmp_path / "other", rows=26))
    again = data_hash("glue/rte", path=write_tiny("glue/rte", tmp_path / "again"))
    assert one == again != other


def test_the_folder_above_the_files_will_do(tmp_path):
    path = write_tiny("glue/cola", tmp_path)
    assert data_hash("glue/cola", path=path.parent) == data_hash("glue/cola", path=path)


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, local_files_only=False, **settings):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.parametrize("name", ["glue/qnli", "sun397"])
def test_without_network_the_command_is_named(name, no_network):
    with pytest.raises(FileNotFoundError, match=r"`hf download .*--include .*`, then dataset\.path=data/") as error:
        load_task(name)
    assert one_sentence(error)


@pytest.mark.parametrize("offline", [True, False])
def test_a_plan_needs_no_network_and_loading_says_what_is_missing(offline, no_network, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    check_data("cifar100")
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set" if offline else "could not be downloaded"):
        load_task("cifar100")


def test_the_hub_is_asked_for_the_pinned_commit_and_its_files_have_the_hash_of_a_local_copy(tmp_path, monkeypatch):
    path = write_tiny("glue/mrpc", tmp_path)
    (tmp_path / "snapshot").mkdir()
    path.rename(tmp_path / "snapshot" / "mrpc")
    asked = {}

    def download(repository, **settings):
        asked.update(settings, repository=repository)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    downloaded = data_hash("glue/mrpc")
    assert downloaded == data_hash("glue/mrpc", path=tmp_path / "snapshot" / "mrpc")
    assert (asked["repository"], asked["repo_type"]) == ("nyu-mll/glue", "dataset")
    assert asked["revision"] == data_revision("glue/mrpc")
    assert asked["allow_patterns"] == ["mrpc/train-*.parquet", "mrpc/validation-*.parquet"]


@pytest.mark.parametrize("name", [f"glue/{task}" for task in GLUE] + list(HUB_IMAGES))
def test_revisions_are_commits(name):
    assert re.fullmatch("[0-9a-f]{40}", data_revision(name))


def spoil(path, how):
    file = path / "validation-00000-of-00001.parquet"
    if how == "no file":
        file.unlink()
    elif how == "no column":
        write_parquet(file, {"text": ["a"], "label": [0]})
    elif how == "no row":
        write_parquet(file, {"sentence": np.array([], dtype=str), "label": np.array([], dtype=np.int64)})
    elif how == "half a file":
        file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no file", r"has no validation-\*\.parquet"),
        ("no column", "has the columns text, label, but glue/cola needs sentence"),
        ("no row", "hold no row"),
        ("half a file", "is no parquet file, or a part of one"),
    ],
)
def test_a_wrong_folder_is_one_sentence_before_anything_is_read(how, message, tmp_path):
    path = write_tiny("glue/cola", tmp_path)
    spoil(path, how)
    for read in (check_data, load_task):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read("glue/cola", path=path)
        assert one_sentence(error)


def test_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.path=.*nowhere is no folder.*hf download") as error:
        check_data("dtd", path=str(tmp_path / "nowhere"))
    assert one_sentence(error)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", {"sentence": ["a", "b"], "label": [0, 2]})
    with pytest.raises(ValueError, match="labels from 0 to 2, but 2 classes"):
        load_task("glue/sst2", path=tmp_path)


def test_settings_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.path=x: digits comes as a package"):
        load_task("digits", path="x")
    with pytest.raises(ValueError, match=r"dataset\.columns is for dataset=table alone"):
        check_data("glue/cola", path=tmp_path, columns={"text": "sentence"})
    with pytest.raises(ValueError, match="Nothing is known of digits"):
        data_facts("digits")


# --- configuration and real copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_config_whose_header_says_what_it_is(name):
    register_schema()
    with initialize_config_dir(str(CONFIG_DIRECTORY), version_base="1.3"):
        composed = compose("config", [f"dataset={name}"])
    assert composed.dataset.name == name
    assert (CONFIG_DIRECTORY / "dataset" / f"{name}.yaml").read_text().startswith("#")


@pytest.mark.parametrize("name", PUBLIC)
def test_headers_state_the_examples_and_the_metric(name, tmp_path):
    header = (CONFIG_DIRECTORY / "dataset" / f"{name}.yaml").read_text().replace("\n# ", " ")
    facts = data_facts(name)
    task = load_task(name, path=write_tiny(name, tmp_path))
    assert f"{facts.train_examples:,} training and {facts.evaluation_examples:,} reported" in header
    assert f"Metric: {task.primary_metric}" in header


# rows of each split, read with pandas elsewhere
REAL = {"glue/cola": "validation", "glue/sst2": "validation", "cifar10": "test"}


@pytest.mark.parametrize("name", REAL)
def test_real_copies_are_read_as_pandas_reads_them(name):
    path = local_data(name)
    check_data(name, path=path)
    task = load_task(name, path=path)
    for split, stem in ((task.train, "train"), (task.evaluation, REAL[name])):
        rows = pd.read_parquet(f"{path}/{stem}-00000-of-00001.parquet")
        assert split.labels.tolist() == rows["label"].tolist()
        first = rows["img"][7]["bytes"] if name == "cifar10" else rows["sentence"][7]
        assert split.inputs[7] == first
    tuning = load_task(name, path=path, evaluate_on="selection")
    assert len(tuning.evaluation) == pytest.approx(len(task.train) / 5, abs=2)
    shares = [np.bincount(split.labels) / len(split) for split in (tuning.evaluation, task.train)]
    assert np.abs(shares[0] - shares[1]).max() < 0.01
