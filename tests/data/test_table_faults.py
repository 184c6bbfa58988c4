"""Tables as they come from other hands: every fault of a kind is one sentence, before anything is written."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from surm.data import load_task
from surm.shared.errors import DataError
from tests.data.faults import COLUMNS, PNG, TEXTS, refused
from tests.data.hub_layout import write_parquet

# --- labels -----------------------------------------------------------------------------------------------------------


def write_csv(folder, train, test, header="text,label"):
    for split, labels in (("train", train), ("test", test)):
        lines = [f'"{TEXTS[i % 6]}",{label}' for i, label in enumerate(labels)]
        (folder / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n")


READ_TOGETHER = [  # labels of train and test as a CSV file has them; the classes, None for a regression; those of test
    (["0", "1", "2"], ["0.0", "1.0"], ("0", "1", "2"), [0, 1]),
    (["0.0", "1.0"], ["1", "0"], ("0", "1"), [1, 0]),
    (["10", "9", "10"], ["9"], ("9", "10"), [0]),
    (["-1", "1"], ["1", "-1"], ("-1", "1"), [1, 0]),
    (["1", "2"], ["2.5"], None, [2.5]),
    (["4", "4.5", "5"], ["4"], None, [4.0]),
    (["1.0", "2.0"], ["3.0"], None, [3.0]),
    (["1e-3", "2"], ["-.5"], None, [-0.5]),
    (["true", "false"], ["true"], ("false", "true"), [1]),
    (["True", "False"], ["False"], ("False", "True"), [0]),
    (["yes", "1", "2"], ["1"], ("1", "2", "yes"), [0]),
    (["1", "2", "other"], ["other", "1"], ("1", "2", "other"), [2, 0]),
    (["nan", "word"], ["nan"], ("nan", "word"), [0]),
    (["NA", "null"], ["null"], ("NA", "null"), [1]),
    (["1", "100000000000000000"], ["100000000000000000"], ("1", "100000000000000000"), [1]),
    (["001", "2"], ["1"], ("1", "2"), [0]),
    (["é", "ß"], ["ß"], ("ß", "é"), [0]),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("train", "test", "classes", "expected"), READ_TOGETHER)
def test_labels_of_both_splits_are_read_together(train, test, classes, expected, tmp_path):
    write_csv(tmp_path, train, test)
    task = load_task("table", path=tmp_path, columns=COLUMNS)
    assert (task.label_names or None) == classes
    assert task.evaluation.labels.tolist() == expected


BAD_LABELS = [
    (["a", "b"], ["c"], "test.csv, line 2: the label c is in the reported rows but not in the training rows"),
    (["1", "2"], ["1", "other"], "test.csv, line 3: the label other is in the reported rows"),
    (["1", "2"], ["2", "3"], "line 3: the label 3 is in the reported rows"),
    (["a", "b"], ["1"], "the label 1 is in the reported rows"),
    (["true", "false"], ["1"], "the label 1 is in the reported rows"),
    (["a", "a"], ["a"], "train.csv: the training rows have one label, a"),
    (["1", "1.0"], ["1"], "one label, 1"),
    (["0.5", "inf"], ["0.5"], "train.csv, line 3: the label inf is no finite number"),
    (["0.5", "1.5"], ["NaN"], "test.csv, line 2: the label NaN is no finite number"),
    (["1", "2"], ["-Infinity"], "the label -Infinity is no finite number"),
    (["1.5", "9" * 5000 + ".5"], ["1.5"], "is no finite number"),
    (["a", ""], ["a"], "train.csv: 1 of 2 cells of label are empty, the first in line 3"),
    (["a", "b"], ["", ""], "test.csv: 2 of 2 cells of label are empty, the first in line 2"),
    (["a"], ["a"], "one label"),
    (["0.5"], ["0.5"], "the train split has 1 rows"),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("train", "test", "message"), BAD_LABELS)
def test_labels_that_cannot_be_trained_on_name_their_row(train, test, message, tmp_path):
    write_csv(tmp_path, train, test)
    assert message in refused("table", tmp_path, COLUMNS)


ARROW_LABELS = [  # train, test, and the classes, None for a regression, or the sentence that refuses them
    (pa.array(["a", "b"]), pa.array([0, 1]), "The column label is text in "),
    (pa.array([0, 1]), pa.array(["0", "1"]), "but text in "),
    (pa.array([True, False]), pa.array([0, 1]), "The column label is truth in "),
    (pa.array([True, False]), pa.array([True, True]), ("False", "True")),
    (pa.array([0, 1, 2]), pa.array([0.0, 1.0]), ("0", "1", "2")),
    (pa.array([0, 1], pa.uint8()), pa.array([1, 0], pa.int64()), ("0", "1")),
    (pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "a"]), ("a", "b")),
    (pa.array([1.5, 2.5], pa.float16()), pa.array([1.0]), None),
    (pa.array([1, 2]).cast(pa.decimal128(21, 2)), pa.array([1]).cast(pa.decimal128(21, 2)), None),
    (pa.array(["1.5", "2"]).cast(pa.decimal128(5, 1)), pa.array([2]), None),
    (pa.array([["a"], ["b"]]), pa.array([["a"]]), "list<"),
    (pa.array([b"a", b"b"]), pa.array([b"a"]), "binary, which is no label"),
    (pa.array([0, None]), pa.array([0]), "1 of 2 cells of label are empty, the first in row 2"),
    (pa.array([0.5, float("nan")]), pa.array([0.5]), "row 2: the label nan is no finite number"),
    (pa.array([0.5, float("-inf")]), pa.array([0.5]), "the label -inf is no finite number"),
    (pa.nulls(2), pa.array([0]), "2 of 2 cells of label are empty"),
    (pa.array([0, 1], pa.timestamp("s")), pa.array([0], pa.timestamp("s")), "date, which is no label"),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("train", "test", "expected"), ARROW_LABELS)
def test_labels_of_parquet_files_keep_their_types(train, test, expected, tmp_path):
    for split, labels in (("train", train), ("test", test)):
        pq.write_table(pa.table({"text": TEXTS[: len(labels)], "label": labels}), tmp_path / f"{split}.parquet")
    if isinstance(expected, str):
        assert expected in refused("table", tmp_path, COLUMNS)
    else:
        assert (load_task("table", path=tmp_path, columns=COLUMNS).label_names or None) == expected


STATED = [  # names of the classes in train and test, labels of both, what refuses them
    (["a", "b"], ["a", "b"], [0, 1], [-1], "test.parquet, row 1: the label -1 is the number of none of the 2 classes"),
    (["a", "b"], ["a", "b"], [0, 2], [0], "train.parquet, row 2: the label 2 is the number of none"),
    (["a", "b"], ["b", "a"], [0, 1], [0], "state other names for the classes of label"),
    (["a", "b"], None, [0, 1], [0], "state other names for the classes of label"),
    (["a", "b"], ["a", "b"], [0.0, 1.0], [0.0], "the label 0.0 is the number of none"),
    (["a", "b"], ["a", "b"], [0, 0], [1], "the training rows have one label, a"),
    (["a"], ["a"], [0, 0], [0], "the training rows have one label, a"),
]


@pytest.mark.sample(6)
@pytest.mark.parametrize(("train_names", "test_names", "train", "test", "message"), STATED)
def test_stated_classes_hold_for_every_label(train_names, test_names, train, test, message, tmp_path):
    for split, names, labels in (("train", train_names, train), ("test", test_names, test)):
        features = names and {"text": {"_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
        write_parquet(tmp_path / f"{split}.parquet", {"text": TEXTS[: len(labels)], "label": labels}, features)
    assert message in refused("table", tmp_path, COLUMNS)


# --- files and cells --------------------------------------------------------------------------------------------------

GOOD = b"text,label\none,0\ntwo,1\n"
BAD_FILES = {  # train.csv, what refuses it
    "empty": (b"", "train.csv is no table with a header line: it is empty"),
    "header alone": (b"text,label\n", "train.csv holds no row"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "train.csv is no table with a header line: it is not in UTF-8"),
    "Latin-1": (b"text,label\ncaf\xe9,0\nb,1\n", "it is not in UTF-8"),
    "open quote": (b'text,label\n"one,0\ntwo,1\n', "is no line of a table"),
    "more cells": (b"text,label\none, and more,0\ntwo,1\n", "train.csv, line 2, has 3 cells, but the header 2"),
    "fewer cells": (b"text,label\none\ntwo,1\n", "1 of 2 cells of label are empty, the first in line 2"),
    "semicolons": (b"text;label\none;0\ntwo;1\n", "has the columns text;label, not label=label, text=text"),
    "two columns of a name": (b"text,text,label\na,b,0\nc,d,1\n", "has several columns called text"),
    "two labels": (b"text,label,label\na,0,0\nc,1,1\n", "has several columns called label"),
    "empty text": (b"text,label\n,0\ntwo,1\n", "1 of 2 cells of text are empty, the first in line 2"),
    "no file of a table": (bytes(range(256)) * 4, "train.csv is no table with a header line"),
    "one row": (b"text,label\none,0\n", "one label"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", BAD_FILES)
def test_damaged_csv_files_name_their_line(fault, tmp_path):
    content, message = BAD_FILES[fault]
    (tmp_path / "train.csv").write_bytes(content)
    (tmp_path / "test.csv").write_bytes(GOOD)
    assert message in refused("table", tmp_path, COLUMNS)


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftext,label\none,0\ntwo,1\n",  # with the mark that Excel writes
        b"text,label\r\none,0\r\n\r\ntwo,1\r\n",
        b'text,label\n"one",0\n"two",1',
        b"label,other,text\n0,x,one\n1,,two\n",
    ],
)
def test_csv_files_as_other_programs_write_them(content, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_bytes(content)
    task = load_task("table", path=tmp_path, columns=COLUMNS)
    assert (task.train.inputs, task.train.labels.tolist()) == (["one", "two"], [0, 1])


def test_long_texts_and_texts_of_digits_stay_as_they_are(tmp_path):
    texts = ["007", "1.50", "word " * 60_000, 'with "quotes"\nand lines', "TRUE"]
    for split in ("train", "test"):
        pd.DataFrame({"text": texts, "label": [0, 1, 0, 1, 0]}).to_csv(tmp_path / f"{split}.csv", index=False)
    assert load_task("table", path=tmp_path, columns=COLUMNS).train.inputs == texts


NO_TEXT = {
    "tokens": (pa.array([["a", "b"], ["c"]]), "list<"),
    "bytes": (pa.array([b"a", b"b"]), "binary, not text"),
    "fields": (pa.array([{"en": "a"}, {"en": "b"}]), "struct<"),
    "map": (pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())), "map<"),
    "empty cell": (pa.array(["a", None]), "are empty, the first in row 2"),
    "no type": (pa.nulls(2), "are empty, the first in row 1"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", NO_TEXT)
@pytest.mark.parametrize("role", ["text", "text_pair"])
def test_cells_that_hold_no_text_are_refused(fault, role, tmp_path):
    cells, message = NO_TEXT[fault]
    other = {"text": "text_pair", "text_pair": "text"}[role]
    for split in ("train", "test"):
        pq.write_table(pa.table({role: cells, other: ["x", "y"], "label": [0, 1]}), tmp_path / f"{split}.parquet")
    found = refused("table", tmp_path, {"text": "text", "text_pair": "text_pair", "label": "label"})
    assert message in found
    assert role in found


def damaged_page(file):
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)


BAD_PARQUET = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "empty": lambda file: file.write_bytes(b""),
    "head alone": lambda file: file.write_bytes(b"PAR1"),
    "text": lambda file: file.write_text("text,label\na,0\n"),
    "a page": damaged_page,
    "a folder": lambda file: (file.unlink(), file.mkdir(), (file / "x").write_text("x")),
    "no rows": lambda file: write_parquet(file, {"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}),
    "no label": lambda file: write_parquet(file, {"text": ["a", "b"]}),
    "a second type": lambda file: write_parquet(
        file.with_name(f"{file.stem}-2.parquet"), {"text": ["a"], "label": ["x"]}
    ),
    "a second layout": lambda file: write_parquet(file.with_name(f"{file.stem}-2.parquet"), {"words": ["a"]}),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", BAD_PARQUET)
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_parquet_files_are_named(fault, split, tmp_path):
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", {"text": TEXTS * 50, "label": [0, 1] * 150})
    BAD_PARQUET[fault](tmp_path / f"{split}.parquet")
    assert split in refused("table", tmp_path, COLUMNS)


def test_all_rows_of_one_text_leave_none_to_select_on(tmp_path):
    for split in ("train", "test"):
        pd.DataFrame({"text": ["same"] * 4, "label": [0, 1, 0, 1]}).to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(DataError, match=r"dataset\.evaluate_on=selection: all 4 training rows"):
        load_task("table", path=tmp_path, columns=COLUMNS, evaluate_on="selection")


# --- images -----------------------------------------------------------------------------------------------------------

NO_IMAGES = {
    "path that is not there": (
        [{"bytes": None, "path": "x.png"}] * 2,
        "Row 1 of image holds no image, nor is x.png there",
    ),
    "nothing": ([{"bytes": PNG, "path": "a"}, {"bytes": None, "path": None}], "Row 2 of image holds no image"),
    "empty cell": ([PNG, None], "Row 2 of image holds no image"),
    "numbers": ([1, 2], "The column image holds int64, not the bytes of image files"),
    "pixels": ([[1, 2], [3, 4]], "The column image holds list<"),
    "no picture": ([PNG, b"no picture"], "The picture in row 2 of the train split is no picture of BMP, "),
    "cut": ([PNG, PNG[:-60]], "The picture in row 2 of the train split is a damaged picture"),
    "names": (["a.png", "b.png"], "a.png, which is not there"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", NO_IMAGES)
def test_tables_without_images_name_the_row(fault, tmp_path):
    cells, message = NO_IMAGES[fault]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", {"image": cells, "label": [0, 1]})
    assert message in refused("table", tmp_path, {"image": "image"})


def test_images_may_be_named_beside_bytes(tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    cells = [{"bytes": None, "path": "x.png"}, {"bytes": PNG, "path": "y.png"}]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", {"image": cells, "label": [0, 1]})
    inputs = load_task("table", path=tmp_path, columns={"image": "image"}).train.inputs
    assert list(inputs) == [tmp_path / "x.png", PNG]
