"""VTAB lists, folders of images and a user's own tables."""

import shutil

import numpy as np
import pandas as pd
import pytest

from surm.data import check_data, data_hash, data_modality, data_revision, load_task
from tests.data.hub_layout import picture, write_tiny


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- VTAB -------------------------------------------------------------------------------------------------------------


def lines_of(file):
    pairs = [line.split(" ") for line in file.read_text().splitlines()]
    return [(file.parent / image, int(label)) for image, label in pairs]


def test_vtab_trains_on_both_lists_and_selects_on_the_second(tmp_path):
    path = write_tiny("vtab/pets", tmp_path)
    train, val, test = (lines_of(path / file) for file in ("train800.txt", "val200.txt", "test.txt"))
    task, tuning = load_task("vtab/pets", path=path), load_task("vtab/pets", path=path, evaluate_on="selection")
    for split, expected in (
        (task.train, train + val),
        (task.evaluation, test),
        (tuning.train, train),
        (tuning.evaluation, val),
    ):
        assert list(zip(split.inputs, split.labels.tolist(), strict=True)) == expected


def test_vtab_is_found_in_the_archive_s_own_folder(tmp_path):
    """One path for all tasks of a sweep: the archive calls the folders otherwise than the tasks."""
    path = write_tiny("vtab/flowers", tmp_path)
    inside = path.rename(tmp_path / "oxford_flowers102")
    assert data_hash("vtab/flowers", path=str(tmp_path)) == data_hash("vtab/flowers", path=str(inside))


def test_vtab_without_path_lists_or_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.path=\.\.\./vtab-1k/patch_camelyon"):
        check_data("vtab/camelyon")
    path = write_tiny("vtab/svhn", tmp_path)
    shutil.rmtree(path / "images" / "test")
    for read in (check_data, load_task):
        with pytest.raises(FileNotFoundError, match="not there"):
            read("vtab/svhn", path=path)
    (path / "val200.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no val200\.txt, which vtab/svhn needs"):
        check_data("vtab/svhn", path=path)


def test_vtab_lines_of_another_kind(tmp_path):
    path = write_tiny("vtab/dtd", tmp_path)
    (path / "test.txt").write_text("images/test/000000.jpg\n")
    with pytest.raises(ValueError, match=r'test\.txt, line 1, .*"relative/path label"'):
        check_data("vtab/dtd", path=path)


def test_vtab_hash_covers_lists_and_images(tmp_path):
    path = write_tiny("vtab/dtd", tmp_path / "one")
    hashes = [data_hash("vtab/dtd", path=path)]
    for spoil in (
        lambda copy: (copy / "test.txt").write_text((copy / "test.txt").read_text().replace(" 0\n", " 1\n")),
        lambda copy: (copy / "images" / "test" / "000000.jpg").write_bytes(picture(np.random.default_rng(9), "JPEG")),
    ):
        copy = tmp_path / str(len(hashes))
        shutil.copytree(path, copy)
        assert data_hash("vtab/dtd", path=str(copy)) == hashes[0]
        other = tmp_path / f"spoilt {len(hashes)}"
        shutil.copytree(path, other)
        spoil(other)
        hashes.append(data_hash("vtab/dtd", path=other))
    assert len(set(hashes)) == 3


# --- folders of images ------------------------------------------------------------------------------------------------


def write_folder(root, rng, splits=("train", "test"), classes=("cat", "dog"), images=5):
    for split in splits:
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for index in range(images):
                (root / split / label / f"{index}.png").write_bytes(picture(rng, "PNG"))
            (root / split / label / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize("evaluation", ["test", "val", "validation"])
def test_folders_are_classes(evaluation, tmp_path, rng):
    write_folder(tmp_path, rng, ("train", evaluation))
    task = load_task("image_folder", path=tmp_path)
    assert task.label_names == ("cat", "dog")
    assert task.evaluation.labels.tolist() == [0] * 5 + [1] * 5
    for split, folder in ((task.train, "train"), (task.evaluation, evaluation)):
        expected = [tmp_path / folder / label / f"{index}.png" for label in ("cat", "dog") for index in range(5)]
        assert split.inputs == expected


def test_test_is_reported_where_there_is_a_validation_split_too(tmp_path, rng):
    write_folder(tmp_path, rng, ("train", "val", "test"))
    assert {file.parts[-3] for file in load_task("image_folder", path=tmp_path).evaluation.inputs} == {"test"}


def test_own_images_are_named_by_names_and_sizes(tmp_path, rng):
    path = write_folder(tmp_path / "one", rng)
    shutil.copytree(path, tmp_path / "two")
    other = shutil.copytree(path, tmp_path / "three")
    (other / "train" / "cat" / "0.png").unlink()
    revisions = [data_revision("image_folder", path=tmp_path / folder) for folder in ("one", "two", "three")]
    assert revisions[0] == revisions[1] != revisions[2]
    assert data_hash("image_folder", path=path).startswith(revisions[0])
    assert data_revision("imagenet1k", path=path) == data_revision("imagenet1k")


def test_public_folders_keep_their_number_of_classes(tmp_path, rng):
    assert load_task("imagenet1k", path=write_folder(tmp_path, rng)).num_labels == 1000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), "has no train: image_folder is read from"),
        (lambda root: shutil.rmtree(root / "test"), "has no test, val or validation"),
        (lambda root: shutil.rmtree(root / "train" / "dog"), "has 1 folders of a class|which .*train has not"),
        (lambda root: [file.unlink() for file in (root / "test").rglob("*.png")], "holds no image"),
    ],
)
def test_wrong_folders_are_one_sentence(spoil, message, tmp_path, rng):
    write_folder(tmp_path, rng)
    spoil(tmp_path)
    for read in (check_data, load_task):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            read("image_folder", path=tmp_path)
        assert "\n" not in str(error.value)


def test_the_reported_split_has_no_class_of_its_own(tmp_path, rng):
    write_folder(tmp_path, rng)
    (tmp_path / "test" / "cow").mkdir()
    (tmp_path / "test" / "cow" / "0.png").write_bytes(picture(rng, "PNG"))
    with pytest.raises(ValueError, match=r"has the class cow, which .*train has not"):
        load_task("image_folder", path=tmp_path)


# --- a user's own table -----------------------------------------------------------------------------------------------

ROWS = pd.DataFrame(
    {
        "review": ["fine", "dull, long", 'a "hit"', "flat", "ça va", "bad"],
        "reply": ["yes", "no", "sure", "no", "oui", "no"],
        "mood": ["glad", "sad", "glad", "sad", "glad", "sad"],
        "stars": [4.5, 1.0, 5.0, 2.0, 3.5, 1.5],
        "grade": [9, 2, 9, 2, 9, 2],
    }
)


def write_table(folder, kind="csv", rows=ROWS, evaluation="test"):
    for split, part in (("train", rows), (evaluation, rows.iloc[:3])):
        getattr(part, f"to_{kind}")(folder / f"{split}.{kind}", index=False)
    return folder


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("evaluation", ["test", "val", "dev", "validation"])
def test_words_are_classes(kind, evaluation, tmp_path):
    path = write_table(tmp_path, kind, evaluation=evaluation)
    columns = {"text": "review", "text_pair": "reply", "label": "mood"}
    check_data("table", path=path, columns=columns)
    task = load_task("table", path=path, columns=columns)
    assert task.label_names == ("glad", "sad")
    assert task.train.inputs == list(zip(ROWS["review"], ROWS["reply"], strict=True))
    assert task.train.labels.tolist() == [0, 1] * 3
    assert len(task.evaluation) == 3
    assert task.metrics == ("accuracy", "f1")


def test_whole_numbers_are_classes_and_others_a_regression(tmp_path):
    path = write_table(tmp_path)
    classes = load_task("table", path=path, columns={"text": "review", "label": "grade"})
    assert (classes.label_names, classes.train.labels.tolist()) == (("2", "9"), [1, 0] * 3)
    values = load_task("table", path=path, columns={"text": "review", "label": "stars"})
    assert (values.regression, values.num_labels, values.metrics) == (True, 1, ("spearman", "pearson"))
    assert values.train.labels.tolist() == ROWS["stars"].tolist()


def test_images_of_a_table_are_bytes_or_paths(tmp_path, rng):
    pictures = [picture(rng, "PNG") for _ in range(4)]
    by_path, by_bytes = tmp_path / "paths", tmp_path / "bytes"
    for folder in (by_path, by_bytes):
        folder.mkdir()
    for index, content in enumerate(pictures):
        (by_path / f"{index}.png").write_bytes(content)
    names = pd.DataFrame({"file": [f"{index}.png" for index in range(4)], "label": [0, 1, 0, 1]})
    write_table(by_path, rows=names)
    write_table(by_bytes, "parquet", rows=pd.DataFrame({"file": pictures, "label": [0, 1, 0, 1]}))
    columns = {"image": "file"}
    assert data_modality("table", columns=columns) == "image"
    assert data_modality("table") == "text"
    paths, raw = (load_task("table", path=folder, columns=columns) for folder in (by_path, by_bytes))
    assert [file.read_bytes() for file in paths.train.inputs] == list(raw.train.inputs) == pictures


def test_own_tables_are_named_by_their_bytes(tmp_path):
    columns = {"text": "review", "label": "mood"}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    write_table(one)
    write_table(two, rows=ROWS.iloc[::-1])
    assert data_revision("table", path=one) != data_revision("table", path=two)
    assert data_hash("table", path=one, columns=columns).startswith(data_revision("table", path=one))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "sentence", "label": "mood"}, "has the columns review, .*, not text=sentence"),
        ({"text": "review"}, "not label=label"),
        ({"texts": "review", "label": "mood"}, r"dataset\.columns names texts: choose from text"),
        ({"label": "mood"}, "not text=text"),  # the columns are called text and label unless said otherwise
        ({"text": "review", "image": "reply", "label": "mood"}, "give text .* or image"),
    ],
)
def test_wrong_columns_are_one_sentence(columns, message, tmp_path):
    path = write_table(tmp_path)
    for read in (check_data, load_task):
        with pytest.raises(ValueError, match=message) as error:
            read("table", path=path, columns=columns)
        assert "\n" not in str(error.value)


def test_empty_cells_tables_and_folders_are_one_sentence(tmp_path):
    columns = {"text": "review", "label": "mood"}
    with pytest.raises(FileNotFoundError, match=r"has no train\*"):
        check_data("table", path=tmp_path, columns=columns)
    with pytest.raises(FileNotFoundError, match=r"read from dataset\.path"):
        check_data("table", columns=columns)
    write_table(tmp_path, rows=ROWS.assign(review=["fine", None, "a", "b", "c", "d"]))
    with pytest.raises(ValueError, match="1 of 6 cells of review are empty"):
        load_task("table", path=tmp_path, columns=columns)
    write_table(tmp_path, rows=ROWS.iloc[:0])
    with pytest.raises(ValueError, match="holds no row"):
        check_data("table", path=tmp_path, columns=columns)


def test_words_that_pandas_takes_for_nothing_are_words(tmp_path):
    path = write_table(tmp_path, rows=ROWS.assign(review=["NA", "null", "None", "nan", "", "n/a"]).drop(index=4))
    task = load_task("table", path=path, columns={"text": "review", "label": "mood"})
    assert task.train.inputs == ["NA", "null", "None", "nan", "n/a"]


def test_labels_that_training_never_sees_are_refused(tmp_path):
    write_table(tmp_path)
    ROWS.assign(mood="angry").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(ValueError, match="label angry is in the reported rows but not in the training rows"):
        load_task("table", path=tmp_path, columns={"text": "review", "label": "mood"})
