"""Data as they come from other hands: every fault of a kind is one sentence, before anything is written."""

import json
import os
import shutil
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from surm import data
from surm.data import check_data, data_hash, data_revision, hashing, load_task
from surm.data.encode import encode
from surm.data.pictures import decode
from surm.shared.errors import DataError
from tests.data.hub_layout import picture, write_parquet, write_tiny

TEXTS = ["one good book", "a bad cat", "it reads well", "never, ever", "two dogs", "slowly"]
COLUMNS = {"text": "text", "label": "label"}


def listing(folder):
    return {file: (file.lstat().st_mtime_ns, file.lstat().st_size) for file in Path(folder).rglob("*")}


def refused(name, path, columns=None):
    """The sentence with which each way into the data refuses them; the folder stays as it is."""
    before, sentences = listing(path), set()
    options = {"path": str(path), **({"columns": columns} if columns else {})}
    for read in (check_data, data_hash, load_task):
        data._read.cache_clear()
        with pytest.raises(DataError) as error:
            read(name, **options)
        sentences.add(str(error.value))
    assert listing(path) == before
    for sentence in sentences:
        assert "\n" not in sentence
        assert len(sentence) < 600
        assert sentence.rstrip().endswith(".")
    return " | ".join(sorted(sentences))


# --- tables: labels ---------------------------------------------------------------------------------------------------


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


# --- tables: files and cells ------------------------------------------------------------------------------------------

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


# --- tables: images ---------------------------------------------------------------------------------------------------

PNG = picture(np.random.default_rng(1), "PNG")
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


# --- folders of pictures ----------------------------------------------------------------------------------------------


def folder(root):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for index in range(3):
                (root / split / label / f"{index}.png").write_bytes(picture(rng, "PNG"))
    return root


def put(name, content):
    def spoil(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return spoil


def saved(image, kind, **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def without(pattern):
    return lambda root: [file.unlink() for file in root.glob(pattern)]


HUGE = saved(Image.new("1", (20_000, 9_750)), "PNG")  # 195 megapixels in a few kilobytes
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
FLOATS = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
BAD_FOLDERS = {
    "huge": (put("train/cat/9.png", HUGE), "9.png has more than 178 megapixels"),
    "huge in test": (put("test/dog/9.png", HUGE), "test/dog/9.png has more than"),
    "empty picture": (put("train/dog/9.jpg", b""), "train/dog/9.jpg is no picture of"),
    "cut JPEG": (
        put("train/dog/9.jpg", picture(np.random.default_rng(3), "JPEG", 200, 200)[:-900]),
        "9.jpg is a damaged",
    ),
    "cut PNG": (put("test/cat/9.png", PNG[:-50]), "9.png is a damaged picture"),
    "cut GIF": (put("test/cat/9.gif", picture(np.random.default_rng(3), "GIF")[:200]), "9.gif is "),
    "HTML": (put("train/cat/9.png", b"<html>not found</html>"), "9.png is no picture of"),
    "a program": (put("train/cat/9.png", EPS), "9.png is no picture of"),
    "32-bit integers": (
        put("train/cat/9.tif", saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF")),
        "9.tif holds 32-bit integers, whose white is not known",
    ),
    "floats below 0": (
        put("train/cat/9.tif", saved(Image.fromarray(FLOATS), "TIFF")),
        "floating-point values from -1 to 1",
    ),
    "floats to 255": (
        put("train/cat/9.tif", saved(Image.fromarray(np.full((4, 4), 255, np.float32)), "TIFF")),
        "floating-point values from 255 to 255",
    ),
    "no number": (
        put("train/cat/9.tif", saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")),
        "floating-point values from nan to nan",
    ),
    "other kind": (put("train/cat/9.heic", b"x"), "train/cat/9.heic is of a kind that is not read"),
    "other kind alone": (
        lambda root: (without("train/cat/*")(root), put("train/cat/0.HEIC", b"x")(root)),
        "0.HEIC is of a kind that is not read",
    ),
    "unknown ending": (
        lambda root: (without("train/cat/*")(root), put("train/cat/0.xyz", PNG)(root)),
        "train/cat holds no image that ends in .jpg, ",
    ),
    "unknown ending in test": (
        lambda root: (without("test/cat/*")(root), put("test/cat/0", PNG)(root)),
        "test/cat holds no image that ends in",
    ),
    "empty class": (without("train/dog/*"), "train/dog holds no image"),
    "one level more": (
        lambda root: (without("train/dog/*")(root), put("train/dog/husky/0.png", PNG)(root)),
        "train/dog holds no image that ends in .*straight into it",
    ),
    "broken link": (lambda root: (root / "train/cat/9.png").symlink_to("nowhere.png"), "9.png is no file, or a link"),
    "a hidden class": (
        lambda root: shutil.move(root / "train" / "dog", root / "train" / ".dog"),
        "train has 1 folders of a class",
    ),
    "a class of test": (put("test/cow/0.png", PNG), "has the class cow, which"),
    "no test": (lambda root: [without("test/*/*")(root)], "test holds no image"),
    "flat": (lambda root: (shutil.rmtree(root / "train"), put("train/0.png", PNG)(root)), "has 0 folders of a class"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", BAD_FOLDERS)
def test_folders_with_a_fault_name_the_file(fault, tmp_path):
    spoil, message = BAD_FOLDERS[fault]
    spoil(folder(tmp_path))
    found = refused("image_folder", tmp_path)
    assert all(part in found for part in message.split(".*"))


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "name",
    [
        "train/.ipynb_checkpoints/0.png",
        "train/.cache/a.txt",
        "test/.ipynb_checkpoints/0-checkpoint.png",
        "train/cat/._0.png",
        "train/cat/.DS_Store",
        "train/cat/Thumbs.db",
        "train/cat/notes.txt",
        ".git/config",
    ],
)
def test_what_tools_leave_behind_is_no_data(name, tmp_path):
    put(name, PNG if name.endswith("checkpoint.png") else b"x")(folder(tmp_path))
    task = load_task("image_folder", path=tmp_path)
    assert (task.label_names, len(task.train), len(task.evaluation)) == (("cat", "dog"), 6, 6)


def test_names_in_another_encoding_are_read(tmp_path):
    folder(tmp_path)
    (tmp_path / "train" / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(PNG)
    assert len(load_task("image_folder", path=tmp_path).train) == 7


GREY = np.array([[0, 64], [128, 255]], dtype=np.uint8)
SAME_GREY = {  # one picture in every depth and mode: right values, whatever the file
    "8 bits": saved(Image.fromarray(GREY), "PNG"),
    "16 bits": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "16-bit TIFF": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "floats": saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "RGB": saved(Image.fromarray(GREY).convert("RGB"), "BMP"),
    "palette": saved(Image.fromarray(GREY).convert("P"), "PNG"),
    "transparent": saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]), "PNG"),
    "RGBA": saved(Image.merge("RGBA", [Image.fromarray(GREY)] * 3 + [Image.fromarray(255 - GREY)]), "PNG"),
    "two frames": saved(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", SAME_GREY)
def test_every_depth_gives_the_values_of_the_picture(kind):
    assert decode(SAME_GREY[kind]).tolist() == np.repeat(GREY[..., None], 3, axis=-1).tolist()


@pytest.mark.sample(6)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"])
@pytest.mark.parametrize("turned", [False, True])
def test_pictures_are_read_as_timm_reads_them(mode, turned, tmp_path):
    from timm.data import ImageDataset

    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    image = Image.open(BytesIO(picture(np.random.default_rng(2), "PNG"))).convert(mode)
    image.putalpha(40) if mode == "RGBA" else None
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    file = tmp_path / "class" / f"0.{kind.lower()}"
    file.parent.mkdir()
    image.save(file, kind, **({"exif": exif} if turned else {}))
    expected, _ = ImageDataset(str(tmp_path))[0]
    assert decode(file).tolist() == np.array(expected).tolist()


# --- GLUE and the hub's images ----------------------------------------------------------------------------------------

GLUE_FAULTS = {  # columns of one file of CoLA, what refuses them
    "no labels": ({"sentence": ["a", "b"], "label": [-1, -1]}, "have no labels, -1 in every row"),
    "null label": (
        {"sentence": ["a", "b"], "label": pa.array([0, None])},
        "The column label .* is empty in 1 of 2 rows",
    ),
    "null sentence": ({"sentence": ["a", None], "label": [0, 1]}, "The column sentence .* first of which is row 2"),
    "all null": ({"sentence": pa.nulls(2), "label": [0, 1]}, "holds null, not string"),
    "lists": ({"sentence": [["a"], ["b"]], "label": [0, 1]}, "holds list<"),
    "bytes": ({"sentence": [b"a", b"b"], "label": [0, 1]}, "holds binary, not string"),
    "words as labels": ({"sentence": ["a", "b"], "label": ["0", "1"]}, "The column label .* holds string, not int"),
    "decimal labels": ({"sentence": ["a", "b"], "label": [0.0, 1.0]}, "The column label .* holds double, not int"),
    "truth": ({"sentence": ["a", "b"], "label": [True, False]}, "holds bool, not int"),
    "label 2": ({"sentence": ["a", "b"], "label": [0, 2]}, "labels from 0 to 2, but 2 classes"),
    "label -2": ({"sentence": ["a", "b"], "label": [-2, 1]}, "labels from -2 to 1, but 2 classes"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", GLUE_FAULTS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_glue_folders_with_a_fault_name_split_and_row(fault, split, tmp_path):
    path = write_tiny("glue/cola", tmp_path)
    columns, message = GLUE_FAULTS[fault]
    write_parquet(path / f"{split}-00000-of-00001.parquet", columns)
    found = refused("glue/cola", path)
    assert f"The {split} files" in found or f"of the {split} files" in found
    assert all(part in found for part in message.split(".*"))


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, float("nan")], "row 2 of the train split has the label nan"),
        ([float("inf"), 1.0], "row 1 of the train split has the label inf"),
        (["1.0", "2.0"], "holds string, not float or double or int"),
        ([-1.0, -1.0], "have no labels"),
    ],
)
def test_values_of_a_regression_are_numbers(labels, message, tmp_path):
    path = write_tiny("glue/stsb", tmp_path)
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": labels}
    write_parquet(path / "train-00000-of-00001.parquet", columns)
    assert message in refused("glue/stsb", path)


@pytest.mark.sample(6)
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("name", ["glue/sst2", "glue/rte", "cifar10", "stl10"])
def test_one_class_alone_is_refused(name, label, tmp_path):
    path = write_tiny(name, tmp_path)
    (file,) = path.glob("train-*.parquet")
    table = pq.read_table(file)
    column = "label"
    position = table.column_names.index(column)
    pq.write_table(table.set_column(position, column, pa.array([label] * len(table))), file)
    assert "the training rows have one label" in refused(name, path)


IMAGE_FAULTS = {
    "no image": lambda cells: [*cells[:-1], {"bytes": None, "path": None}],
    "a path": lambda cells: [{"bytes": None, "path": "x.png"}, *cells[1:]],
    "damage": lambda cells: [*cells[:-1], {"bytes": PNG[:-60], "path": ""}],
    "no picture": lambda cells: [{"bytes": b"GIF89a", "path": ""}, *cells[1:]],
    "huge": lambda cells: [{"bytes": HUGE, "path": ""}, *cells[1:]],
    "numbers": lambda cells: [1] * len(cells),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", IMAGE_FAULTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_the_hub_with_a_fault_name_the_row(fault, split, tmp_path):
    path = write_tiny("cifar10", tmp_path)
    file = path / f"{split}-00000-of-00001.parquet"
    table = pq.read_table(file)
    cells = IMAGE_FAULTS[fault](table["img"].to_pylist())
    write_parquet(file, {"img": cells, "label": table["label"]})
    found = refused("cifar10", path)
    assert any(word in found.lower() for word in (f"row {len(cells)} of", "row 1 of", "the column img holds"))


# --- VTAB -------------------------------------------------------------------------------------------------------------

VTAB_FAULTS = {
    "digits of another script": (lambda text: text.replace(" 0\n", " \u00b2\n"), "line 1, is"),
    "a label of 5,000 digits": (lambda text: text.replace(" 0\n", f" {'9' * 5000}\n"), "line 1, is"),
    "a negative label": (lambda text: text.replace(" 0\n", " -1\n"), "line 1, is"),
    "a decimal label": (lambda text: text.replace(" 0\n", " 0.0\n"), "line 1, is"),
    "no label": (lambda text: text.replace(" 0\n", "\n"), "line 1, is"),
    "a class too many": (lambda text: text.replace(" 0\n", " 47\n"), "labels from "),
    "nothing": (lambda text: "\n\n", "names no image"),
    "an image that is not there": (lambda text: text + "images/none.jpg 0\n", "none.jpg is listed but not there"),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", VTAB_FAULTS)
@pytest.mark.parametrize("file", ["train800.txt", "val200.txt", "test.txt"])
def test_lists_with_a_fault_name_the_line(fault, file, tmp_path):
    change, message = VTAB_FAULTS[fault]
    path = write_tiny("vtab/dtd", tmp_path)
    (path / file).write_text(change((path / file).read_text()))
    assert message in refused("vtab/dtd", path)


def test_lists_that_are_no_text_are_refused(tmp_path):
    path = write_tiny("vtab/dtd", tmp_path)
    (path / "val200.txt").write_bytes(b"\xff\xfe\x00")
    assert "val200.txt is no text in UTF-8" in refused("vtab/dtd", path)


# --- identity ---------------------------------------------------------------------------------------------------------


def bitmaps(root, seed):
    """Pictures of equal names and sizes whatever the seed: nothing but their content differs."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test", "images/train800", "images/val200", "images/test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "0.bmp").write_bytes(picture(rng, "BMP"))
    for name in ("train800", "val200", "test"):
        (root / f"{name}.txt").write_text(f"images/{name}/a/0.bmp 0\nimages/{name}/b/0.bmp 1\n")
    for split in ("train", "test"):
        (root / f"{split}.csv").write_text(f"file,label\n{split}/a/0.bmp,0\n{split}/b/0.bmp,1\n")
    return root


BY_CONTENT = {"image_folder": None, "imagenet1k": None, "vtab/dtd": None, "table": {"image": "file"}}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", BY_CONTENT)
def test_equal_names_and_sizes_are_no_equal_data(name, tmp_path):
    hashes = [
        data_hash(name, path=bitmaps(tmp_path / str(number), seed), columns=BY_CONTENT[name])
        for number, seed in enumerate((0, 1, 0))
    ]
    assert hashes[0] == hashes[2] != hashes[1]
    if name in ("image_folder", "table"):
        revisions = [data_revision(name, path=tmp_path / str(n), columns=BY_CONTENT[name]) for n in range(3)]
        assert revisions == [found[:12] for found in hashes]


@pytest.fixture
def read_bytes(monkeypatch):
    """The files that were read to be hashed."""
    read = []
    blocks = hashing._blocks
    monkeypatch.setattr(hashing, "_blocks", lambda file: (read.append(file), blocks(file))[1])
    return read


@pytest.fixture
def settled(monkeypatch):
    """Every file counts as written long ago."""
    monkeypatch.setattr(hashing, "SETTLED", -60.0)


@pytest.mark.sample(6)
@pytest.mark.parametrize("function", ["contents_hash", "files_hash"])
def test_a_file_is_hashed_once_until_it_changes(function, tmp_path, read_bytes, settled):
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(b"content")
    compute = partial(getattr(hashing, function), *([tmp_path] if function == "contents_hash" else []), files)
    first = compute()
    assert (compute(), len(read_bytes)) == (first, 2)
    stamp = files[1].stat()
    files[1].write_bytes(b"CONTENT")  # of the same size, with its time put back
    os.utime(files[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert compute() != first
    assert set(read_bytes[2:]) == ({files[1]} if function == "contents_hash" else set(files))


def test_a_file_that_was_just_written_is_read_again(tmp_path, read_bytes):
    (tmp_path / "a").write_bytes(b"content")
    for _ in range(2):
        hashing.contents_hash(tmp_path, [tmp_path / "a"])
    assert len(read_bytes) == 2


@pytest.mark.sample(6)
@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000, b'{"a": ["x"]}', b"null"])
def test_a_damaged_cache_of_hashes_is_computed_again(damage, tmp_path, settled):
    (tmp_path / "a").write_bytes(b"content")
    expected = hashing.contents_hash(tmp_path, [tmp_path / "a"])
    (file,) = (hashing.cache_folder() / "hashes").glob("*.json")
    file.write_bytes(damage)
    assert hashing.contents_hash(tmp_path, [tmp_path / "a"]) == expected
    assert list(json.loads(file.read_text())) == ["a"]


def test_hashes_need_no_cache(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"content")
    expected = hashing.contents_hash(tmp_path, [tmp_path / "a"])
    monkeypatch.setenv("SURM_CACHE", str(tmp_path / "a"))  # a file where a folder should be
    assert hashing.contents_hash(tmp_path, [tmp_path / "a"]) == expected
    bitmaps(tmp_path / "data", 0)
    check_data("image_folder", path=tmp_path / "data")


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    path = bitmaps(tmp_path, 0)
    check_data("image_folder", path=path)
    data._read.cache_clear()
    monkeypatch.setattr("surm.data.pictures.decode", None)
    check_data("image_folder", path=path)


def test_all_rows_of_one_text_leave_none_to_select_on(tmp_path):
    for split in ("train", "test"):
        pd.DataFrame({"text": ["same"] * 4, "label": [0, 1, 0, 1]}).to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(DataError, match=r"dataset\.evaluate_on=selection: all 4 training rows"):
        load_task("table", path=tmp_path, columns=COLUMNS, evaluate_on="selection")


def test_read_pictures_reach_the_model_as_they_are(tmp_path):
    from surm.models import load_backbone

    folder(tmp_path)
    put("train/cat/0.png", saved(Image.fromarray(np.full((30, 30), 65535, np.uint16)), "PNG"))(tmp_path)
    split = load_task("image_folder", path=tmp_path).train
    backbone = load_backbone("tiny_vit", num_labels=2)
    pixels = encode(split, backbone)[0]["x"]
    white = (1 - np.array(backbone.mean)) / np.array(backbone.std)
    assert pixels.amax(dim=(1, 2)).tolist() == pytest.approx(white.tolist())
    assert pixels.amin(dim=(1, 2)).tolist() == pytest.approx(white.tolist())
