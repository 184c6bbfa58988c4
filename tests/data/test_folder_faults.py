"""Folders in a stated layout (pictures, GLUE, images of the hub, VTAB): every fault is one sentence, as for tables."""

import os
import shutil
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from surm import data
from surm.data import check_data, load_task
from surm.data.encode import encode
from surm.data.pictures import decode
from tests.data.faults import HUGE, PNG, bitmaps, folder, put, refused, saved
from tests.data.hub_layout import picture, write_parquet, write_tiny

# --- folders of pictures ----------------------------------------------------------------------------------------------


def without(pattern):
    return lambda root: [file.unlink() for file in root.glob(pattern)]


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


def test_pictures_are_decoded_once(tmp_path, monkeypatch):
    path = bitmaps(tmp_path, 0)
    check_data("image_folder", path=path)
    data._read.cache_clear()
    monkeypatch.setattr("surm.data.pictures.decode", None)
    check_data("image_folder", path=path)


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
